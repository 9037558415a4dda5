"""The part of ``vitnp features`` that takes videos."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.errors import UsageError

if TYPE_CHECKING:
    from vitnp.features.export import Outcome


def take_clips(args: argparse.Namespace) -> list[Path]:
    """Take the videos out of the paths of the command line.

    Raises
    ------
    UsageError
        If there is no place for their files, another option does not take them, or PyAV is not installed.
    """
    from vitnp.video.container import import_av
    from vitnp.video.frames import is_video

    paths = list(args.photographs)
    args.photographs = [path for path in paths if not is_video(path) or Path(path).is_dir()]
    clips = [Path(path) for path in dict.fromkeys(paths) if path not in args.photographs]
    if not clips:
        return clips
    flag = "--prune" if args.prune else "--masks" if args.masks is not None else "--mask" if args.mask else None
    if flag is not None:
        raise UsageError(f"{flag} takes photographs, got the video {clips[0]}; give a folder of its frames")
    import_av()
    stems = [str(folder_of(args, clip) / clip.stem) for clip in clips]
    if len(set(stems)) < len(stems):
        raise UsageError("videos of one name would write to the same files; leave out --out, or take them one by one")
    return clips


def folder_of(args: argparse.Namespace, clip: Path) -> Path:
    """Return the folder of the files of a video's frames: --out, or one of its name beside it."""
    return clip.with_suffix("") if args.out is None else args.out


def check_names(args: argparse.Namespace, clips: Sequence[Path], stems: Sequence[Path]) -> None:
    """Check that the files of no photograph have the names of those of a frame.

    Raises
    ------
    UsageError
        If one of `stems`, the beginnings of the names of the photographs' files, is that of a frame.
    """
    for clip in clips:
        frames = re.compile(re.escape(str(folder_of(args, clip) / clip.stem)) + "_[0-9]+", re.IGNORECASE)
        if any(frames.fullmatch(str(stem)) for stem in stems):
            raise UsageError(f"{clip}: a photograph has the name of its frames; give another --out, or rename it")


def in_turn(outcomes: Sequence[Generator[Outcome, None, None]]) -> Generator[Outcome, None, None]:
    """Yield all outcomes; each generator is closed at the end, even after an exception."""
    for each in outcomes:
        with contextlib.closing(each):
            yield from each

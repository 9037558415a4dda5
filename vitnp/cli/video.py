"""The part of ``vitnp segment`` that takes videos and folders of frames."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vitnp.cli import arguments, shared, streams
from vitnp.errors import ImageError, OutputError, UsageError, VitnpError
from vitnp.io.path_text import mapping_entries, path_entries
from vitnp.options import OPTIONS

if TYPE_CHECKING:
    from vitnp.export.video_run import FrameOutcome, VideoRun
    from vitnp.vit.model import ViT

# Options that mean nothing for a clip.
_UNUSED = ("formats", "polygons", "cache", "scheduler")


class Done(NamedTuple):
    """Arguments of :func:`vitnp.cli.shared.conclude`."""

    failures: list[VitnpError]
    total: int
    done: int


def take_clips(args: argparse.Namespace) -> list[Path]:
    """Take the videos, and with --video the folders, out of the paths of the command line.

    Raises
    ------
    UsageError
        If --video is given with anything else.
    """
    from vitnp.video.frames import is_video

    paths = [Path(path) for path in args.photographs]
    clips = [path for path in paths if (is_video(path) and not path.is_dir()) or (args.video and path.is_dir())]
    others = [path for path in paths if path not in clips]
    if args.video and others:
        raise UsageError(f"--video takes folders of frames and videos, got {others[0]}")
    args.photographs = [path for path in args.photographs if Path(path) not in clips]
    return clips


def segment_clips(args: argparse.Namespace, which: list[str], clips: Sequence[Path]) -> Done:
    """Segment clips one after the other, and say what became of them."""
    _check_options(args, clips)
    if args.save == OPTIONS["save"].default:
        which = ["mask"]  # the preview shows what overlays would
    vit = arguments.load_model(args)
    failures: list[VitnpError] = []
    total = done = 0
    for clip in clips:
        run = _run(args, which, clip, vit)
        before = len(failures)
        try:
            finished = _report(args, run, failures)
        except (ImageError, OutputError) as error:
            failures.append(error)
            shared.report_failure(error, as_json=args.json, photograph=clip)
            finished = 0
        done += finished
        total += finished + len(failures) - before
    return Done(failures, total, done)


def _check_options(args: argparse.Namespace, clips: Sequence[Path]) -> None:
    """Check that the options can be combined, before any work.

    Raises
    ------
    UsageError
        If they cannot, or PyAV is needed and not installed.
    """
    if args.out is not None and args.out.suffix and not args.out.is_dir():
        raise UsageError(f"--out {args.out} must be a folder for the frames of a clip")
    if args.save_collection and len(clips) > 1:
        raise UsageError("--save-collection saves the collection of one clip; name one")
    names = [clip.stem for clip in clips]
    if args.out is not None and len(set(names)) < len(names):
        raise UsageError("clips of one name would write to the same files of --out; segment them one by one")
    if any(not clip.is_dir() for clip in clips):
        from vitnp.video.container import import_av

        import_av()
    unused = [OPTIONS[name].long_flag for name in _UNUSED if getattr(args, name) != OPTIONS[name].default]
    if unused:
        shared.say(f"{', '.join(unused)}: no effect on clips", quiet=args.quiet)


def _run(args: argparse.Namespace, which: Sequence[str], clip: Path, vit: ViT) -> VideoRun:
    """Return the run over one clip."""
    from vitnp.export.video_run import VideoRun
    from vitnp.method.collection import Collection
    from vitnp.method.parameters import run_parameters
    from vitnp.pipeline import ImagePipeline
    from vitnp.video.pipeline import VideoPipeline
    from vitnp.video.segment import resolve_clip_collection
    from vitnp.video.smoothing import SMOOTHING

    settings = arguments.settings(args)
    named = "fit" if args.levels == "all" or args.save_collection else args.collection
    if arguments.names_collection(args):
        named = args.collection
    elif args.levels == "image":
        named = "none"

    def fit() -> VideoPipeline:
        names = ("n_categories", "consistency", "fit_patches", "regions", "n_threads", "batch")
        collection = resolve_clip_collection(
            clip, vit, settings, named, n_classes=args.n_classes, **{name: getattr(args, name) for name in names}
        )
        if args.save_collection and collection is not None:
            collection.save(args.save_collection)
        return VideoPipeline(
            ImagePipeline.create(vit, settings, collection), n_threads=args.n_threads, batch=args.batch
        )

    digest = Collection.load(named).digest if arguments.names_collection(args) else named
    depends = {
        **run_parameters(vit, settings),
        **{
            name: getattr(args, name) for name in ("n_classes", "n_categories", "consistency", "fit_patches", "regions")
        },
        "collection": digest,
        "smoothing": dataclasses.asdict(SMOOTHING),
    }
    return VideoRun(
        clip, fit, which, args.out, depends, args.overwrite or bool(args.save_collection),
        arguments.cutout_options(args), args.n_threads,
    )  # fmt: skip


def _report(args: argparse.Namespace, run: VideoRun, failures: list[VitnpError]) -> int:
    """Run over a clip, print what became of it, and return the number of frames that succeeded."""
    from vitnp.video.container import count_frames

    shares: list[float] = []
    total = 0 if run.clip.is_dir() or args.quiet else count_frames(run.clip)
    with contextlib.closing(run.outcomes()) as outcomes:
        for outcome in shared.progress(outcomes, total, quiet=args.quiet, unit="frame"):
            if outcome.error:
                failures.append(outcome.error)
            else:
                shares.append(float(outcome.entry["share"]))
            if args.json:
                _print_json(outcome)
    if run.unchanged:
        shared.say("nothing has changed since the last run; --overwrite redoes everything", quiet=args.quiet)
    elif run.preview is None:
        shared.say("no preview: it needs the package av; pip install 'vitnp[video]'", quiet=args.quiet)
    if shares and not args.json and not args.quiet:
        preview = "" if run.preview is None else f", {run.preview.name}"
        streams.print_line(
            f"{run.clip}: {len(shares)} frame{'s' * (len(shares) != 1)}, foreground {sum(shares) / len(shares):.0%} "
            f"-> {run.record}{preview}"
        )
    return len(shares)


def _print_json(outcome: FrameOutcome) -> None:
    """Print one line for a frame, for programs."""
    shared.print_json(
        {
            **path_entries("photograph", outcome.photograph),
            "frame": outcome.index,
            "time": outcome.time,
            "status": outcome.status,
            **({"error": str(outcome.error)} if outcome.error else mapping_entries("outputs", outcome.outputs)),
            **{name: value for name, value in outcome.entry.items() if name in ("share", "confidence", "classes")},
        }
    )

"""Fit one collection to frames sampled evenly from a clip."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitnp.errors import ImageError
from vitnp.io.write import write_png
from vitnp.method.collection import Collection
from vitnp.segmenter import Segmenter
from vitnp.video.container import VideoPicture
from vitnp.video.frames import Frame

# Most frames that a collection is fitted to; neighboring frames of a clip tell the same.
MAX_SAMPLE = 64


def fit_collection(frames: Iterable[Frame], segmenter: Segmenter) -> Collection:
    """Fit a collection to a sample of the frames of a clip; the same frames give the same collection.

    Parameters
    ----------
    frames : iterable of Frame
        Read once, to the end.
    segmenter : Segmenter
        Not fitted yet.

    Returns
    -------
    Collection

    Raises
    ------
    ImageError
        If no frame can be read.
    """
    with tempfile.TemporaryDirectory(prefix="vitnp-frames-") as folder:
        sample = sample_frames(frames, Path(folder))
        if not sample:
            raise ImageError("none of the frames can be read; name another clip")
        collection = segmenter.fit(sample).collection
    assert collection is not None  # fit succeeded
    return collection


def sample_frames(frames: Iterable[Frame], folder: Path, most: int = MAX_SAMPLE) -> list[Any]:
    """Return every frame of a clip, or every second, fourth, eighth ... so that there are at most so many.

    The number of frames need not be known: whenever there are too many, every second one is dropped.

    Parameters
    ----------
    frames : iterable of Frame
    folder : Path
        Frames of videos are kept there as PNG files, and no frame of any clip in memory but those that lie there.
    most : int
        Maximum number of frames.

    Returns
    -------
    list of photographs
        In the order of time.
    """
    kept: list[tuple[int, Any]] = []
    step = 1
    for frame in frames:
        if frame.error is not None or frame.index % step:
            continue
        kept.append((frame.index, _keep(frame, folder)))
        while len(kept) > most:
            step *= 2
            for index, photograph in kept:
                if index % step and isinstance(frame.source, VideoPicture):
                    photograph.unlink()
            kept = [each for each in kept if each[0] % step == 0]
    return [photograph for _, photograph in kept]


def _keep(frame: Frame, folder: Path) -> Any:
    """Return the photograph of a frame; that of a video as a file."""
    if not isinstance(frame.source, VideoPicture):
        return frame.source
    path = folder / f"{frame.index}.png"
    write_png(path, frame.decode().rgb)
    return path

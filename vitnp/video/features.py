"""Features of the frames of videos: one basis of colors over all frames, and the files of each frame.

A video is decoded a chunk of frames at a time, which lie in a temporary folder meanwhile as photographs do. It is read
once to fit a basis, and once to write; only the features of all frames are kept in between, in a store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from vitnp.errors import ImageError
from vitnp.features.basis import fit_basis
from vitnp.features.export import Outcome, write_features
from vitnp.features.pca import PatchPCA
from vitnp.features.spec import FeatureSpec
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.find import Photograph
from vitnp.io.write import write_png
from vitnp.video.frames import Frame, read_frames
from vitnp.vit.model import ViT

# Limits of a chunk: frames, and pixels of all of them together, of which a PNG file takes about two bytes each.
_CHUNK_FRAMES = 128
_CHUNK_PIXELS = 100_000_000


@dataclasses.dataclass(eq=False)
class Chunk:
    """Neighboring frames of a video.

    Attributes
    ----------
    frames : list of Frame
        Frames that were decoded, without their pictures.
    photographs : list of Photograph
        The file of each; they are removed when the next chunk is asked for.
    errors : list of ImageError
        One for each frame that cannot be read.
    """

    frames: list[Frame] = dataclasses.field(default_factory=list)
    photographs: list[Photograph] = dataclasses.field(default_factory=list)
    errors: list[ImageError] = dataclasses.field(default_factory=list)


def read_chunks(clip: Path, *, max_pixels: int = MAX_PIXELS) -> Generator[Chunk, None, None]:
    """Yield the frames of a video in chunks of files, in order.

    A video that cannot be read, or cannot be read on, gives a last chunk with the error.

    Parameters
    ----------
    clip : Path
    max_pixels : int
        Videos of larger frames are refused.

    Raises
    ------
    UsageError
        If PyAV is not installed.
    """
    frames = read_frames(clip, max_pixels=max_pixels)
    more = True
    while more:
        chunk, pixels = Chunk(), 0
        with tempfile.TemporaryDirectory(prefix="vitnp-frames-") as folder:
            try:
                while more and len(chunk.frames) < _CHUNK_FRAMES and pixels < _CHUNK_PIXELS:
                    frame = next(frames, None)
                    more = frame is not None
                    if frame is not None:
                        pixels += _add(chunk, frame, Path(folder))
            except ImageError as error:
                chunk.errors.append(error)
                more = False
            yield chunk


def fit_clips_basis(
    photographs: Sequence[Photograph],
    clips: Sequence[Path],
    vit: ViT,
    store: FeatureStore,
    *,
    foreground: str | float | None = None,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], object] | None = None,
    failures: list[tuple[Path, ImageError]] | None = None,
) -> PatchPCA:
    """Fit one basis to the patches of photographs and of all frames of videos together.

    Parameters
    ----------
    photographs : sequence of Photograph
    clips : sequence of Path
        Videos.
    vit, store, foreground, n_threads, batch, max_pixels, progress
        As for :func:`vitnp.features.basis.fit_basis`.
    failures : list, optional
        List to which path and error of everything are appended that cannot be read.

    Returns
    -------
    PatchPCA

    Raises
    ------
    ImageError
        If nothing can be read: the first error.
    OutputError
        If the store cannot be written.
    UsageError
        If there are fewer patches than components, or PyAV is not installed.
    """
    failed: list[tuple[Path, ImageError]] = []
    fingerprints: set[str] = set()

    def extract(part: Sequence[Photograph], clip: Path | None = None) -> None:
        found = extract_to_store(
            part, vit, store, n_threads=n_threads, batch=batch, max_pixels=max_pixels, progress=progress
        )
        fingerprints.update(name for name in found.hashes if name is not None)
        failed.extend((clip or part[index].path, error) for index, error in found.failures.items())

    if photographs:
        extract(photographs)
    for clip in clips:
        with contextlib.closing(read_chunks(clip, max_pixels=max_pixels)) as chunks:
            for chunk in chunks:
                failed.extend((clip, error) for error in chunk.errors)
                extract(chunk.photographs, clip)
    if failures is not None:
        failures.extend(failed)
    if failed and not fingerprints:
        raise failed[0][1]
    return fit_basis(fingerprints, store, foreground=foreground, n_threads=n_threads)


def write_clip_features(
    clip: Path, folder: Path, vit: ViT, spec: FeatureSpec, *, max_pixels: int = MAX_PIXELS, **arguments: Any
) -> Generator[Outcome, None, None]:
    """Write the features of each frame of a video, and pictures of them.

    Parameters
    ----------
    clip : Path
    folder : Path
        Folder of the files, which are named after the video and the number of the frame, as those of
        ``vitnp segment`` are: ``clip_000000_pca.png``.
    vit, spec, max_pixels, **arguments
        As for :func:`vitnp.features.export.write_features`.

    Yields
    ------
    Outcome
        One per frame, or per error of the video; `photograph` is the video.

    Raises
    ------
    OutputError, UsageError
        As for :func:`vitnp.features.export.write_features`; also if PyAV is not installed.
    """
    with contextlib.closing(read_chunks(clip, max_pixels=max_pixels)) as chunks:
        for chunk in chunks:
            numbers = {photograph.path: frame for photograph, frame in zip(chunk.photographs, chunk.frames)}
            stems = [folder / frame.name for frame in chunk.frames]
            outcomes = write_features(chunk.photographs, stems, vit, spec, max_pixels=max_pixels, **arguments)
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    frame = numbers[outcome.photograph]
                    yield dataclasses.replace(outcome, photograph=clip, frame=frame.index, seconds=frame.seconds)
            for error in chunk.errors:
                yield Outcome(clip, error=error)


def _add(chunk: Chunk, frame: Frame, folder: Path) -> int:
    """Add a frame to a chunk, and return the number of its pixels."""
    try:
        rgb = frame.decode().rgb
    except ImageError as error:
        chunk.errors.append(error)
        return 0
    path = folder / f"{frame.name}.png"
    write_png(path, rgb)
    chunk.frames.append(dataclasses.replace(frame, source=None))
    chunk.photographs.append(Photograph(path, Path(path.name)))
    return rgb.size // 3

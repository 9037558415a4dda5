"""Read the frames of a video, of a folder, or of a list, in the order of time and one after the other."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitnp import options
from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import DecodedImage, decode_image
from vitnp.io.find import find_photographs
from vitnp.io.headers import file_hash, stored_size
from vitnp.io.kinds import LEFT_OUT
from vitnp.io.source import content_hash
from vitnp.video.container import VideoPicture, decode_video

# Digits of the number in a frame's name: enough for nine hours at thirty frames per second.
_DIGITS = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a clip; either `error` or what :meth:`decode` returns is its picture.

    Attributes
    ----------
    index : int
        Position in the clip, from 0.
    name : str
        What names of its outputs begin with: that of its file without extension, or that of the video and the index.
    seconds : float or None
        Time from the beginning of a video; None in folders and lists.
    source : photograph or VideoPicture
        Where the picture is.
    error : ImageError, optional
        Why there is none.
    """

    index: int
    name: str
    seconds: float | None
    source: Any = dataclasses.field(repr=False, default=None)
    error: ImageError | None = None

    def decode(self, *, max_pixels: int = options.MAX_PIXELS, alpha: str = "background") -> DecodedImage:
        """Return the picture.

        Raises
        ------
        ImageError
            If it cannot be read.
        """
        if self.error is not None:
            raise self.error
        if isinstance(self.source, VideoPicture):
            return self.source.convert()
        return decode_image(self.source, max_pixels=max_pixels, alpha=alpha)

    def fingerprint(self, image: DecodedImage) -> str:
        """Return the hash of the frame's file, or of its pixels if it has none of its own."""
        if isinstance(self.source, (str, os.PathLike)):
            return file_hash(self.source)
        return content_hash(image.rgb)


def is_video(path: object) -> bool:
    """Tell whether a path is that of a video, by its extension.

    Examples
    --------
    >>> is_video("clip.MP4"), is_video("photograph.jpg")
    (True, False)
    """
    return isinstance(path, (str, os.PathLike)) and LEFT_OUT.get(Path(path).suffix.lower()) == "video"


def read_frames(frames: Any, *, max_pixels: int = options.MAX_PIXELS) -> Iterator[Frame]:
    """Yield the frames of a clip in order, one at a time: a video of any length takes the memory of one frame.

    A frame of a video that cannot be decoded is yielded with its error, and those after it follow. Turned videos are
    upright. Files of a folder are read by :meth:`Frame.decode`, which may run in several threads.

    Parameters
    ----------
    frames : path of a video or folder, or iterable of photographs
        Files of a folder are sorted by the numbers in their names: ``frame2.png`` comes before ``frame10.png``.
        Subfolders are left out. Photographs are whatever :func:`vitnp.io.inputs.as_photograph` takes.
    max_pixels : int
        Videos of larger frames are refused.

    Yields
    ------
    Frame

    Raises
    ------
    ImageError
        If there are no frames, the file is no video, or the size changes on the way.
    UsageError
        If it is none of these, or videos cannot be read for lack of a package.

    Examples
    --------
    >>> for frame in read_frames("clip.mp4"):                        # doctest: +SKIP
    ...     print(frame.seconds, frame.decode().rgb.mean())
    """
    if isinstance(frames, (str, os.PathLike)):
        path = Path(frames)
        if path.is_dir():
            for index, file in enumerate(frame_files(path)):
                yield Frame(index, file.stem, None, file)
            return
        for index, (seconds, picture) in enumerate(decode_video(path, max_pixels)):
            name = f"{path.stem}_{index:0{_DIGITS}d}"
            broken = picture if isinstance(picture, ImageError) else None
            yield Frame(index, name, seconds, picture, broken)
        return
    if not isinstance(frames, Iterable) or isinstance(frames, (bytes, dict)):
        raise UsageError(f"frames must be a video, a folder or a list of photographs, got {type(frames).__name__}")
    for index, photograph in enumerate(frames):
        yield Frame(index, f"frame_{index:0{_DIGITS}d}", None, photograph)


def frame_files(folder: Path) -> list[Path]:
    """Return the photographs of a folder in the order of the numbers in their names.

    Raises
    ------
    ImageError
        If there are none.

    Examples
    --------
    >>> sorted(["frame10.png", "frame2.png"], key=natural_order)
    ['frame2.png', 'frame10.png']
    """
    files = [photograph.path for photograph in find_photographs([folder]) if photograph.path.parent == folder]
    if not files:
        raise ImageError(f"{folder}: its frames must lie in the folder itself, which holds none", path=folder)
    return sorted(files, key=lambda file: natural_order(file.name))


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names by the numbers in them: "frame2" before "frame10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in parts], name


def check_sizes(files: Sequence[Path]) -> None:
    """Check by the headers of files that all of them have one size, in either orientation.

    Files that cannot be read are passed over.

    Raises
    ------
    ImageError
        If one has another size than the first.
    """
    first: tuple[Path, tuple[int, int]] | None = None
    for file in files:
        try:
            size = stored_size(file)
        except ImageError:
            continue
        if first is None:
            first = file, size
        elif sorted(size) != sorted(first[1]):
            raise ImageError(
                f"{file}: this frame has {size[1]} x {size[0]} pixels, and {first[0].name} {first[1][1]} x "
                f"{first[1][0]}; the frames of a clip have one size",
                path=file,
            )

"""What comes in: photographs found, read, and brought to the size and scale that the network wants."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vitnp import kernels
from vitnp.decoding import FORMATS, MAX_PIXELS, file_hash, pixels_of, read_image, unopened
from vitnp.errors import ImageError, UsageError
from vitnp.outputs import is_own_output
from vitnp.rasters import reduce as resize

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "SHORT_SIDE",
    "Photograph",
    "content_hash",
    "file_hash",
    "find_photographs",
    "network_size",
    "normalise",
    "pixels_of",
    "read_image",
    "resize",
]

SHORT_SIDE = 320

# fmt: off
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".heic", ".heif", ".hif", ".avif",
})
# fmt: on


def content_hash(rgb: np.ndarray) -> str:
    """Fingerprint of a picture's shape and pixels: 32 hexadecimal digits of BLAKE2b.

    Two files that decode to the same pixels share it, whatever their names and formats.

    Examples
    --------
    >>> import numpy as np
    >>> content_hash(np.zeros((2, 3, 3), np.uint8))
    '3034a84a7690e6cd97747e2c803230b8'
    """
    digest = hashlib.blake2b(repr(rgb.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(rgb))
    return digest.hexdigest()


def network_size(
    height: int,
    width: int,
    *,
    short_side: int = SHORT_SIDE,
    patch: int = 16,
    stride: int | None = None,
    max_tokens: int = 4096,
) -> tuple[tuple[int, int], bool]:
    """Size at which a photograph enters the network.

    The short side becomes the multiple of the patch nearest to `short_side` (320 gives 322 for a patch of 14), the long
    side the multiple nearest to what keeps the aspect, each at least one patch. When that makes too many tokens, both
    sides shrink by the largest common factor that doesn't.

    Parameters
    ----------
    height, width : int
        The photograph's size in pixels.
    short_side, patch : int
        In pixels.
    stride : int, optional
        Step between patches, at most the patch and by default equal to it: a side then holds
        ``(side - patch) // stride + 1`` tokens.
    max_tokens : int
        The cap on patch tokens.

    Returns
    -------
    (height, width) : (int, int)
        Multiples of the patch.
    capped : bool
        Whether `max_tokens` made it smaller.

    Raises
    ------
    UsageError
        For a number below 1, or a stride that exceeds the patch.

    Examples
    --------
    >>> network_size(375, 500)
    ((320, 432), False)
    >>> network_size(10, 10000)
    ((32, 32768), True)
    """
    stride = patch if stride is None else stride
    for name, value in (
        ("height", height),
        ("width", width),
        ("short side", short_side),
        ("patch", patch),
        ("stride", stride),
        ("token limit", max_tokens),
    ):
        if value < 1:
            raise UsageError(f"the {name} is {value}; choose 1 or more")
    if stride > patch:
        raise UsageError(
            f"the stride {stride} exceeds the patch size {patch} and would leave gaps; choose 1 to {patch}"
        )

    def at(scale: float) -> tuple[int, int]:
        return _snap(height * scale, patch), _snap(width * scale, patch)

    def fits(size: tuple[int, int]) -> bool:
        return ((size[0] - patch) // stride + 1) * ((size[1] - patch) // stride + 1) <= max_tokens

    enough = _snap(short_side, patch) / min(height, width)
    if fits(size := at(enough)):
        return size, False
    # The tokens grow with the scale in steps, so bisection finds the last step that fits, to the last bit of a float.
    small, large = 0.0, enough
    while small < (middle := (small + large) / 2) < large:
        small, large = (middle, large) if fits(at(middle)) else (small, middle)
    return at(small), True


def short_side_of(asked: int | None, patch: int) -> int:
    """The short side in pixels at which the network sees photographs: the multiple of the patch nearest to what is asked
    for, by default to 320.

    Examples
    --------
    >>> short_side_of(None, 14), short_side_of(250, 16)
    (322, 256)
    """
    asked = SHORT_SIDE if asked is None else asked
    if asked < 1:
        raise UsageError(f"the short side is {asked}; choose 1 or more")
    return _snap(asked, patch)


def _snap(side: float, patch: int) -> int:
    """The multiple of the patch nearest to a side, halves upwards, never zero."""
    return max(1, int(side / patch + 0.5)) * patch


def normalise(rgb: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Scale a picture to 0..1, subtract the mean, divide by the standard deviation, channels first.

    Parameters
    ----------
    rgb : array, shape (h, w, 3), uint8
    mean, std : three floats
        On the scale 0..1.

    Returns
    -------
    array, shape (3, h, w), float32

    Examples
    --------
    >>> import numpy as np
    >>> normalise(np.full((1, 1, 3), 255, np.uint8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).ravel()
    array([1., 1., 1.], dtype=float32)
    """
    if kernels.device_of(rgb) == "cuda":
        return kernels.for_array(rgb).normalise(rgb, mean, std)
    unit = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32)
    unit /= np.float32(255)
    unit -= np.asarray(mean, np.float32)[:, None, None]
    unit /= np.asarray(std, np.float32)[:, None, None]
    return unit


# --- Finding photographs ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph to be read, and its place below the folder in which it was found."""

    path: Path
    relative: Path


def find_photographs(
    paths: Iterable[str | os.PathLike[str]], *, failures: list[ImageError] | None = None
) -> list[Photograph]:
    """List the photographs that files and folders stand for.

    A file is taken whatever its extension. A folder is walked with its subfolders, each sorted by name: files with a
    known extension are taken, hidden ones (a leading dot) and pictures that vitnp itself wrote are skipped, symbolic
    links are followed, and each folder is visited once. What is named twice counts once.

    Parameters
    ----------
    paths : iterable of paths
    failures : list of ImageError, optional
        Collects one error for each entry that gives no photograph: a missing file, a file that vitnp wrote, a folder
        that can't be listed or holds no photograph. Without it the first such error is raised.

    Returns
    -------
    list of Photograph
        `relative` is the path below its folder, led by the folder's own name when several folders are given, and the
        bare file name for a file.

    Raises
    ------
    ImageError
        See `failures`.
    """
    paths = [Path(path) for path in paths]
    lead = sum(os.path.isdir(path) for path in paths) > 1
    found: dict[str, Photograph] = {}
    visited: set[tuple[int, int]] = set()
    for path in paths:
        try:
            for photograph in _expand(path, lead, visited):
                found.setdefault(_place(photograph.path), photograph)
        except ImageError as error:
            if failures is None:
                raise
            failures.append(error)
    return list(found.values())


def _place(path: Path) -> str:
    """One spelling for each directory entry; a link to a photograph is a photograph of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _expand(path: Path, lead: bool, visited: set[tuple[int, int]]) -> Iterator[Photograph]:
    try:
        information = path.stat()
    except (OSError, ValueError) as error:
        raise unopened(path, error) from None
    if not stat.S_ISDIR(information.st_mode):
        if is_own_output(path):
            raise ImageError(f"{path}: vitnp wrote this picture itself; name the photograph it was made from")
        yield Photograph(path, Path(path.name))
        return
    again = (information.st_dev, information.st_ino) in visited
    prefix = Path(os.path.basename(os.path.abspath(path))) if lead else Path()
    any_found = False
    for file in _walk(path, visited):
        any_found = True
        yield Photograph(file, prefix / file.relative_to(path))
    if not any_found and not again:
        raise ImageError(f"{path}: this folder holds no photographs ({FORMATS}); name another one")


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Photographs of a folder and its subfolders, depth first, in the order of their names."""
    waiting = [folder]
    while waiting:
        entry = waiting.pop()
        try:
            if not os.path.isdir(entry):
                if entry.suffix.lower() in EXTENSIONS and os.path.isfile(entry) and not is_own_output(entry):
                    yield entry
                continue
            information = entry.stat()
            identity = information.st_dev, information.st_ino
            if identity not in visited:
                visited.add(identity)
                names = sorted((name for name in os.listdir(entry) if not name.startswith(".")), reverse=True)
                waiting.extend(entry / name for name in names)
        except OSError as error:
            raise unopened(entry, error) from None

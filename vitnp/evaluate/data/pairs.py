"""Data sets on disk: which mask belongs to which photograph, and what a mask file says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.io.decode import unopened
from vitnp.io.find import EXTENSIONS, find_photographs

if TYPE_CHECKING:
    from PIL import Image


MASK_EXTENSIONS = EXTENSIONS | {".pbm", ".pgm", ".pnm", ".ppm"}

# Lossy files leave a little color in a black-and-white mask, labels painted in colors leave a lot.
COLOR_TOLERANCE = 64


class Pair(NamedTuple):
    """A photograph and its mask; `name` is the photograph's path within its folder, with forward slashes."""

    name: str
    image: Path
    mask: Path


def match_pairs(images_dir: str | os.PathLike[str], masks_dir: str | os.PathLike[str]) -> tuple[list[Pair], list[Path]]:
    """Find the mask of every photograph in a folder.

    A mask belongs to the photograph with the same path within its folder, whatever the two extensions; a photograph
    without such a mask takes the one with the same file name, wherever it lies, provided that the name occurs only
    once among the photographs and once among the masks. Photographs are found as `vitnp.io.find.find_photographs` does,
    which passes over what vitnp wrote; among the masks, hidden files and files without a picture's extension don't
    count. One folder may lie inside the other.

    Parameters
    ----------
    images_dir, masks_dir : path
        Folders, searched with their subfolders.

    Returns
    -------
    pairs : list of Pair
        One for each photograph, ordered by name.
    unused : list of Path
        Masks that belong to no photograph, ordered by their path.

    Raises
    ------
    UsageError
        When a folder is missing or holds no pictures, both are the same, two files differ only in their extension, or a
        photograph has no mask.
    ImageError
        When a folder can't be listed.

    Examples
    --------
    >>> pairs, unused = match_pairs("ECSSD/images", "ECSSD/masks")       # doctest: +SKIP
    >>> pairs[0].name                                                    # doctest: +SKIP
    '0001.jpg'
    """
    images_dir, masks_dir = Path(images_dir), Path(masks_dir)
    for folder, content in ((images_dir, "photographs"), (masks_dir, "masks")):
        if not folder.is_dir():
            problem = "this is not a folder" if folder.exists() else "there is no such folder"
            raise UsageError(f"{folder}: {problem}; name the one that holds the {content}")
    if images_dir.samefile(masks_dir):
        raise UsageError(
            f"{images_dir}: photographs and masks are in one folder; keep the masks in a folder of their own"
        )

    photographs = (photograph.relative for photograph in find_photographs([images_dir]))
    images = _by_key(images_dir, photographs, inner=masks_dir, content="photographs")
    masks = _by_key(masks_dir, _mask_files(masks_dir), inner=images_dir, content="masks")

    image_stems = Counter(map(_stem, images))
    mask_stems = Counter(map(_stem, masks))
    keys_by_stem = {_stem(key): key for key in masks}
    pairs, lacking, used = [], [], set()
    for key, relative in images.items():
        stem = _stem(key)
        if key in masks:
            match = key
        elif image_stems[stem] == 1 and mask_stems[stem] == 1:
            match = keys_by_stem[stem]
        else:
            lacking.append(relative.as_posix())
            continue
        used.add(match)
        pairs.append(Pair(relative.as_posix(), images_dir / relative, masks_dir / masks[match]))
    if lacking:
        raise UsageError(
            f"{images_dir}: {len(lacking)} of {len(images)} photographs have no mask in {masks_dir} ({_some(lacking)}); "
            "give each a mask with its path within the folder, or with its file name where only one photograph and one "
            "mask have that name (extensions don't matter)"
        )
    return pairs, [masks_dir / relative for key, relative in masks.items() if key not in used]


def read_truth(path: str | os.PathLike[str], shape: tuple[int, int]) -> np.ndarray:
    """Read a mask file as foreground and background.

    Foreground is what is brighter than half: above 127 in a mask of 0 to 255, above 32767 in one of 16 bits (whose
    largest value exceeds 255), 1 in a mask whose largest value is 1. A palette image that shows colors is a map of
    labels: every label but 0 is foreground, one for "don't know" included. What is more than half transparent is
    background. An EXIF orientation is applied.

    Parameters
    ----------
    path : path
        Any picture that Pillow reads.
    shape : (int, int)
        Rows and columns of the upright photograph; a mask of another size is refused, since scaling would move its
        outline.

    Returns
    -------
    bool (H, W)
        True on the object.

    Raises
    ------
    ImageError
        When the file is missing, damaged or no picture, has another size, or is painted in colors.

    Examples
    --------
    >>> read_truth("ECSSD/masks/0001.png", (300, 400)).mean()     # doctest: +SKIP
    0.31
    """
    from PIL import Image, ImageOps

    rows, columns = shape
    try:
        with Image.open(path) as picture:
            # The size is compared before anything is decoded: a wrong file costs no memory.
            if sorted(picture.size) == sorted(shape):
                picture = ImageOps.exif_transpose(picture)
            if picture.size != (columns, rows):
                raise ImageError(
                    f"{path}: the mask has {picture.width} x {picture.height} pixels, but its photograph has "
                    f"{columns} x {rows}; give each photograph a mask of its own size"
                )
            levels = _levels(picture, path)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path}: there is not enough memory to decode this mask; close other programs") from None
    # Damaged files make Pillow's decoders raise almost anything: OSError, SyntaxError, ValueError, struct.error …
    except Exception as error:
        if getattr(error, "errno", None):
            raise unopened(path, error) from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: this mask is damaged or not a picture ({reason}); get a sound copy") from None
    peak = levels.max()
    full_scale = 1 if peak <= 1 else 255 if peak <= 255 else 65535
    return levels > full_scale / 2


def _levels(picture: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """One number for each pixel of a mask, (rows, columns): brightness, or 0 and 1 for a map of labels."""
    if picture.mode == "P" and _shows_colors(picture):
        return (np.asarray(picture) > 0).astype(np.uint8)
    if picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    if picture.mode not in ("1", "L", "LA", "P"):
        colors = np.asarray(picture.convert("RGB"))
        if np.ptp(colors, axis=2).max() > COLOR_TOLERANCE:
            raise ImageError(f"{path}: this mask is painted in colors; make the object white and all else black")
    levels = np.asarray(picture.convert("L"))
    if "A" in picture.getbands():
        levels = np.where(np.asarray(picture.getchannel("A")) > 127, levels, 0)
    return levels


def _shows_colors(picture: Image.Image) -> bool:
    """Whether any palette entry that the picture uses is not gray."""
    palette = np.array(picture.getpalette("RGB"), dtype=int).reshape(-1, 3)
    used = np.unique(np.asarray(picture))
    shown = palette[used[used < len(palette)]]
    return bool((shown != shown[:, :1]).any())


def _by_key(folder: Path, files: Iterable[Path], *, inner: Path, content: str) -> dict[str, Path]:
    """Files of a folder by their path in it without the extension, ordered; those in the folder `inner` are left out."""
    try:
        apart = inner.resolve().relative_to(folder.resolve())
    except ValueError:
        apart = None
    found: dict[str, Path] = {}
    for relative in sorted(files, key=Path.as_posix):
        if apart is not None and apart in relative.parents:
            continue
        key = relative.with_suffix("").as_posix()
        if key in found:
            raise UsageError(f"{folder}: {found[key]} and {relative} differ only in their extension; keep one of them")
        found[key] = relative
    if not found:
        raise UsageError(f"{folder}: this folder holds no {content}; name another one")
    return found


def _mask_files(folder: Path) -> Iterator[Path]:
    """Pictures below a folder, relative to it, in no order; hidden files and folders are passed over."""

    def refuse(error: OSError) -> None:
        raise unopened(error.filename, error)

    for where, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(where, name)
            if not name.startswith(".") and path.suffix.lower() in MASK_EXTENSIONS and path.is_file():
                yield path.relative_to(folder)


def _stem(key: str) -> str:
    return key.rpartition("/")[2]


def _some(names: list[str], most: int = 3) -> str:
    """The first few names.

    Examples
    --------
    >>> _some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")

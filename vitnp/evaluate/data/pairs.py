"""Photographs and their masks: match the files of two folders, and read a mask."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.files import open_picture, shorten_list
from vitnp.io.decode import unopened
from vitnp.io.find import EXTENSIONS, find_photographs

if TYPE_CHECKING:
    from PIL import Image


MASK_EXTENSIONS = EXTENSIONS | {".pbm", ".pgm", ".pnm", ".ppm"}

# Largest difference between the channels of a gray pixel: lossy compression adds a little color to gray masks, while
# label maps painted in colors differ by more.
COLOR_TOLERANCE = 64

# Half of full scale of 8 bits, and the opacity above which a pixel is not at a soft edge.
HALF, SOLID = 127, 250
HALF_OF_16_BITS = 32767


class Pair(NamedTuple):
    """A photograph and its mask.

    Attributes
    ----------
    name : str
        The photograph's path within its folder, with forward slashes.
    image, mask : Path
        Their files.
    """

    name: str
    image: Path
    mask: Path


def match_pairs(images_dir: str | os.PathLike[str], masks_dir: str | os.PathLike[str]) -> tuple[list[Pair], list[Path]]:
    """Find the mask of every photograph in a folder.

    A mask belongs to the photograph with the same path within its folder, regardless of the extensions. A photograph
    without such a mask gets the mask with the same file name in any subfolder, provided that the name is unique among
    the photographs and among the masks. Photographs are found by :func:`vitnp.io.find.find_photographs`, which skips
    vitnp's own output; hidden files and files without a picture's extension are no masks. One folder may contain the
    other.

    Parameters
    ----------
    images_dir, masks_dir : path
        Folders, searched with their subfolders.

    Returns
    -------
    pairs : list of Pair
        One per photograph, sorted by name.
    unused : list of Path
        Masks that belong to no photograph, sorted by path.

    Raises
    ------
    UsageError
        When a folder is missing or contains no pictures, both are the same, two files differ only in their extension,
        or a photograph has no mask.
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
        raise UsageError(f"{images_dir}: photographs and masks are in the same folder; move the masks to another one")

    photographs = (photograph.relative for photograph in find_photographs([images_dir]))
    images = _files_by_key(images_dir, photographs, exclude=masks_dir, content="photographs")
    masks = _files_by_key(masks_dir, _mask_files(masks_dir), exclude=images_dir, content="masks")

    image_stems = Counter(map(_stem, images))
    mask_stems = Counter(map(_stem, masks))
    keys_by_stem = {_stem(key): key for key in masks}
    pairs, unmatched, used = [], [], set()
    for key, relative in images.items():
        stem = _stem(key)
        if key in masks:
            match = key
        elif image_stems[stem] == 1 and mask_stems[stem] == 1:
            match = keys_by_stem[stem]
        else:
            unmatched.append(relative.as_posix())
            continue
        used.add(match)
        pairs.append(Pair(relative.as_posix(), images_dir / relative, masks_dir / masks[match]))
    if unmatched:
        raise UsageError(
            f"{images_dir}: {len(unmatched)} of {len(images)} photographs have no mask in {masks_dir} "
            f"({shorten_list(unmatched, 3)}); give each a mask with the same path within its folder, or with the same "
            "file name if that is unique (extensions don't matter)"
        )
    return pairs, [masks_dir / relative for key, relative in masks.items() if key not in used]


def read_truth(path: str | os.PathLike[str], shape: tuple[int, int]) -> np.ndarray:
    """Read a mask file as foreground and background.

    A pixel is foreground if it is brighter than half of full scale: above 127 if values go up to 255, above 32767 if
    they go up to 65535, 1 if the largest value is 1, and above half of it if it is 511, 1023 and so on to 16383, the
    white of 9 to 14 bits. A palette image with colors is a label
    map: every label but 0 is foreground, also 255. In a picture with transparent parts, the object is what is visible
    (alpha above 127), in whatever colors: a matte or a cutout. The EXIF orientation is applied.

    Parameters
    ----------
    path : path
        A picture in a format of photographs, or PBM, PGM or PPM.
    shape : (int, int)
        Rows and columns of the upright photograph. A mask of another size raises ImageError, since scaling would move
        its outline.

    Returns
    -------
    bool (rows, columns)
        True on the object.

    Raises
    ------
    ImageError
        When the file is missing or damaged, is no picture, has another size, shows colors without transparent parts, or
        shows both black and white beside transparent parts, of which either may be the background, or when its
        values do not tell which one is white.

    Examples
    --------
    >>> read_truth("ECSSD/masks/0001.png", (300, 400)).mean()     # doctest: +SKIP
    0.31
    """
    from PIL import ImageOps

    rows, columns = shape
    with open_picture(path, "mask") as opened:
        # Compare sizes before anything is decoded: a wrong file costs no memory.
        picture = ImageOps.exif_transpose(opened) if sorted(opened.size) == sorted(shape) else opened
        if picture.size != (columns, rows):
            raise ImageError(
                f"{path}: the mask has {picture.width} x {picture.height} pixels, but its photograph has "
                f"{columns} x {rows}; give each photograph a mask of its own size"
            )
        levels = _gray_levels(picture, path)
    return levels > _full_scale(levels, path) / 2


def _full_scale(levels: np.ndarray, path: str | os.PathLike[str]) -> float:
    """Return the value of white, by the largest value of a mask."""
    maximum = levels.max()
    for white in (1, 255):
        if maximum <= white:
            return white
    if HALF_OF_16_BITS < maximum <= 2 * HALF_OF_16_BITS + 1:
        return 2 * HALF_OF_16_BITS + 1
    if maximum in (2**bits - 1 for bits in range(9, 15)):
        return float(maximum)
    # Also true for NaN, which is neither larger nor smaller than any number.
    raise ImageError(
        f"{path}: the largest value of this mask is {maximum:g}, which is no white; save it in 8 bits, the object 255"
    )


def _gray_levels(picture: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the brightness of each pixel, (rows, columns); of a label map or a matte 0 and 1."""
    if picture.has_transparency_data and picture.mode[0] not in "IF":
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
        if alpha.min() <= HALF:
            return _visible_object(picture, alpha, path)
    if picture.mode == "P" and _has_colors(picture):
        return (np.asarray(picture) > 0).astype(np.uint8)
    if picture.mode.startswith(("I", "F")):
        return np.asarray(picture)
    if picture.mode not in ("1", "L", "LA", "P"):
        colors = np.asarray(picture.convert("RGB"))
        if np.ptp(colors, axis=2).max() > COLOR_TOLERANCE:
            raise ImageError(f"{path}: a mask must be black and white, but this one has colors; make the object white")
    return np.asarray(picture.convert("L"))


def _visible_object(picture: Image.Image, alpha: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Return 1 where a picture with transparent parts is visible; raise ImageError if that may not be the object."""
    solid = alpha > SOLID  # what shows through at the edge says nothing about the colors of the object
    if picture.mode == "P" and _has_colors(picture):
        shown = np.asarray(picture)[solid] > 0  # labels
    else:
        rgb = np.asarray(picture.convert("RGBA"))[..., :3][solid]
        colored = rgb.size > 0 and np.ptp(rgb, axis=1).max() > COLOR_TOLERANCE
        shown = np.ones(0, bool) if colored else rgb[:, 1] > HALF
    if shown.any() and not shown.all():
        raise ImageError(
            f"{path}: the mask has transparent parts and shows both background and object; save it without "
            "transparency, the object white, or with the object alone visible"
        )
    return (alpha > HALF).astype(np.uint8)


def _has_colors(picture: Image.Image) -> bool:
    """Return whether the picture uses any palette entry that is not gray."""
    palette = np.array(picture.getpalette("RGB"), dtype=int).reshape(-1, 3)
    indices = np.unique(np.asarray(picture))
    colors = palette[indices[indices < len(palette)]]
    return bool((colors != colors[:, :1]).any())


def _files_by_key(folder: Path, files: Iterable[Path], *, exclude: Path, content: str) -> dict[str, Path]:
    """Map paths without extension, sorted, to the files; files below the folder `exclude` are left out.

    All paths are relative to `folder`.
    """
    try:
        excluded = exclude.resolve().relative_to(folder.resolve())
    except ValueError:
        excluded = None
    by_key: dict[str, Path] = {}
    for relative in sorted(files, key=Path.as_posix):
        if excluded is not None and excluded in relative.parents:
            continue
        key = relative.with_suffix("").as_posix()
        if key in by_key:
            raise UsageError(f"{folder}: {by_key[key]} and {relative} differ only in their extension; keep one of them")
        by_key[key] = relative
    if not by_key:
        raise UsageError(f"{folder}: this folder contains no {content}; name another one")
    return by_key


def _mask_files(folder: Path) -> Iterator[Path]:
    """Yield the pictures below a folder, relative to it, unsorted, without hidden files and folders."""

    def fail(error: OSError) -> None:
        raise unopened(error.filename, error)

    for parent, subfolders, files in os.walk(folder, onerror=fail, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in MASK_EXTENSIONS and path.is_file():
                yield path.relative_to(folder)


def _stem(key: str) -> str:
    return key.rpartition("/")[2]

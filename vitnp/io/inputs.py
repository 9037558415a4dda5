"""What users pass as photographs: turn each into a path, encoded bytes, a PIL image or an array."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.io.find import Photograph, find_photographs, is_url, url_error

if TYPE_CHECKING:
    from PIL import Image

    Photo = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

_ACCEPTED = (
    "a path, a file object, bytes, a PIL image, an array (H, W, 3), or a row of a data set with one of these under "
    "'image'"
)
# Keys under which data sets keep a photograph, in the order in which they are tried.
_IMAGE_KEYS = ("image", "img", "photo", "picture")


def as_photograph(value: Any) -> Photo:
    """Return one photograph in a form that :func:`vitnp.io.decode.decode_image` reads.

    Parameters
    ----------
    value : path, file object, bytes, PIL image, array, or row of a data set
        A file object is read to its end. Anything with ``__array__`` counts as an array; of a torch tensor (C, H, W)
        give ``tensor.permute(1, 2, 0)``. A row, as of Hugging Face ``datasets``, is a mapping with the photograph under
        "image", itself or as ``{"bytes": ..., "path": ...}``.

    Returns
    -------
    path, bytes, PIL image or array

    Raises
    ------
    ImageError
        If it is none of these.

    Examples
    --------
    >>> as_photograph({"image": np.zeros((4, 5, 3), np.uint8), "label": 3}).shape
    (4, 5, 3)
    """
    if is_url(value):
        raise url_error(value)
    if isinstance(value, (str, os.PathLike, bytes)) or hasattr(value, "getexif"):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "read"):
        data = value.read()
        if not isinstance(data, bytes):
            raise ImageError(
                f"a photograph's file must be opened for bytes, open(path, 'rb'), got {type(value).__name__}"
            )
        return data
    if isinstance(value, Mapping):
        return _of_row(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and min(array.shape[1:]) > 4:
            channels, height, width = array.shape
            raise ImageError(
                f"the shape of an array must be (H, W, 3), got {array.shape}, which looks like (C, H, W) with C = "
                f"{channels}; transpose it to ({height}, {width}, {channels})"
            )
        return array
    raise ImageError(f"a photograph must be {_ACCEPTED}, got {type(value).__name__}")


def as_photographs(values: Any) -> list[Any]:
    """Return a list of photographs.

    Parameters
    ----------
    values : path of a folder, array (N, H, W, C), or iterable of anything that :func:`as_photograph` takes
        A folder is searched as the command line does, see :func:`vitnp.io.find.find_photographs`. Data sets with rows,
        as those of Hugging Face, are iterables.

    Raises
    ------
    UsageError
        If it is a single photograph, or nothing of these.
    ImageError
        If a folder holds no photographs, or an item is none.
    """
    if isinstance(values, (str, os.PathLike)):
        if not Path(values).is_dir():
            raise UsageError(
                f"photographs must be a list or a folder, got the single path {os.fspath(values)!r}; put it into a list"
            )
        return [photograph.path for photograph in find_photographs([values])]
    if (
        isinstance(values, (bytes, bytearray, memoryview, Mapping))
        or hasattr(values, "getexif")
        or hasattr(values, "read")
    ):
        raise UsageError("photographs must be a list, got a single one; put it into a list")
    if not isinstance(values, Iterable) or hasattr(values, "__array__"):
        shape = getattr(values, "shape", None)
        if shape is None or len(shape) != 4:
            got = type(values).__name__ if shape is None else f"an array of shape {tuple(shape)}"
            raise UsageError(f"photographs must be a list, a folder or an array (N, H, W, 3), got {got}")
        values = np.asarray(values)
    return [value if isinstance(value, Photograph) else as_photograph(value) for value in values]


def _of_row(row: Mapping[str, Any]) -> Photo:
    """Return the photograph of a data set's row."""
    for key in _IMAGE_KEYS:
        if row.get(key) is not None:
            return as_photograph(row[key])
    if row.get("bytes") is not None:
        return as_photograph(row["bytes"])
    if row.get("path") is not None:
        return as_photograph(row["path"])
    raise ImageError(
        f"a row must have its photograph under 'image', got the keys {', '.join(map(repr, row)) or 'none'}"
    )

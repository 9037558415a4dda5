"""Write label images as PNG files with the PASCAL VOC palette."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from vitnp.io.write import write_png
from vitnp.masks.palette import voc_colors


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write labels as an 8-bit palette PNG: pixel values are the classes, and image viewers show them in color.

    Parameters
    ----------
    path : path
    labels : array, shape (H, W), uint8
        0 is background.
    text : mapping of str to str
        Text chunks in addition to the stamp, see :func:`vitnp.io.write.write_png`.

    Raises
    ------
    ValueError
        If `labels` is not a uint8 image.
    OutputError
        If the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_labels(folder + "/a_labels.png", np.array([[0, 7]], np.uint8))
    ...     with Image.open(folder + "/a_labels.png") as image:
    ...         image.mode, np.asarray(image).tolist()
    ('P', [[0, 7]])
    """
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise ValueError(f"labels must be a uint8 array of shape (H, W), got {labels.dtype} of shape {labels.shape}")
    # All 256 colors: readers of a shorter palette may take higher values for damage.
    write_png(path, labels, text, palette=voc_colors())

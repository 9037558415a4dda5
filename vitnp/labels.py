"""Label images: a class number at each pixel, in a PNG whose palette is that of PASCAL VOC."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from vitnp.outputs import write_png

__all__ = ["bright_colours", "voc_colours", "write_labels"]


def voc_colours(n: int = 256) -> np.ndarray:
    """Colours of the first `n` classes as PASCAL VOC and its many descendants paint them; 0, the background, is black.

    A class number's bits go round among red, green and blue, the lowest three into the channels' highest bits (VOC
    development kit, ``VOClabelcolormap``).

    Parameters
    ----------
    n : int
        At most 256.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> voc_colours(4).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    if not 0 <= n <= 256:
        raise ValueError(f"the colour map has 256 entries, not {n}")
    rest = np.arange(n)[:, None] >> np.arange(3)
    colours = np.zeros((n, 3), np.uint8)
    for bit in range(7, 4, -1):
        colours |= ((rest & 1) << bit).astype(np.uint8)
        rest >>= 3
    return colours


def bright_colours(n: int = 256) -> np.ndarray:
    """The colours of :func:`voc_colours`, lighter, to draw on photographs, where half-bright lines hardly show.

    A square root lifts each channel: the hues stay recognisable, and colours that differ still do.

    Returns
    -------
    array, shape (n, 3), uint8

    Examples
    --------
    >>> bright_colours(3).tolist()
    [[0, 0, 0], [181, 0, 0], [0, 181, 0]]
    """
    return np.round(255 * np.sqrt(voc_colours(n) / 255)).astype(np.uint8)


def write_labels(
    path: str | os.PathLike[str], labels: np.ndarray, text: Mapping[str, str] | None = None
) -> None:
    """Write labels as an 8-bit palette PNG: pixel values are the classes, and any viewer shows them in colour.

    Parameters
    ----------
    path : path
    labels : array, shape (H, W), uint8
        0 is background.
    text : mapping of str to str
        Text chunks beside vitnp's own stamp, see :func:`vitnp.outputs.write_png`.

    Raises
    ------
    ValueError
        When `labels` isn't an image of class numbers.
    OutputError
        When the file can't be written.

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
    from PIL import Image

    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise ValueError(f"labels must be a uint8 array of shape (H, W), not {labels.dtype} of {labels.shape}")
    picture = Image.fromarray(np.ascontiguousarray(labels))
    # The whole palette always: with 16 colours or fewer Pillow would pack several pixels into a byte.
    picture.putpalette(voc_colours().tobytes())
    write_png(path, picture, text)

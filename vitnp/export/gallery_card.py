"""A photograph on the page ``gallery.html``: thumbnail, outlines, name, confidence and links as one list item."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitnp.io.path_text import printable
from vitnp.masks.contours import smooth_rings

# Short and long side of the embedded pictures in pixels. They are shown somewhat smaller. The ratio bounds the
# proportions of the cards.
_SHORT, _LONG = 200, 600

# Limit of the bytes of a picture, before base64 makes four of three; the rest of a card takes 1 to 2 KB. The first
# quality that stays within it is used.
_PICTURE_BYTES = 7200
_QUALITIES = (72, 60, 48, 36, 24, 12)
# Effort of WebP, 0 to 6: it takes half the time of 4, the default, for 4 % more bytes.
_METHOD = 2

# Limit of the points of a photograph's outlines, scale at which they are traced, and units per pixel of their
# coordinates.
_POINTS = 360
_TRACED = 2
_UNITS = 4


def card(
    name: str,
    rgb: np.ndarray,
    labels: np.ndarray,
    classes: Mapping[int, str],
    confidence: float,
    *,
    preview: str = "",
    files: Mapping[str, str] | None = None,
) -> str:
    """Return the list item of a photograph.

    Parameters
    ----------
    name : str
    rgb : (h, w, 3) uint8
        The photograph, at any size.
    labels : (H, W) uint8
        0 on the background, then the classes.
    classes : mapping of int to str
        Names of the classes in `labels`, in ascending order.
    confidence : float
    preview : str
        Address of a larger picture, relative to the page.
    files : mapping of str to str
        Addresses of the photograph's files, by what they are.
    """
    picture, (width, height) = _embedded(rgb)
    ratio = min(max(width / height, _SHORT / _LONG), _LONG / _SHORT)
    paths = _paths(labels, list(classes), (width, height))
    # Each path is drawn twice, a wide white line below a colored one, to be visible on any background.
    lines = "".join(f'<path class="halo" d="{d}"/>' for _, d in paths)
    lines += "".join(f'<path class="k{number}" d="{d}"/>' for number, d in paths)
    chips = "".join(
        f'<span><i class="k{number}"></i><bdi>{html.escape(text)}</bdi></span>' for number, text in classes.items()
    )
    links = "".join(
        f'<a href="{html.escape(address)}" target="_blank" rel="noopener">{kind}</a>'
        for kind, address in (files or {}).items()
    )
    source = f' data-p="{html.escape(preview)}"' if preview else ""
    return (
        f'<li class="card" data-k="{" ".join(map(str, classes))}" data-c="{confidence:.4f}"{source} '
        f'style="--r:{ratio:.4f}"><button type="button"><span class="shot">'
        f'<img alt="" loading="lazy" decoding="async" width="{width}" height="{height}" src="{picture}">'
        f'<svg viewBox="0 0 {width * _UNITS} {height * _UNITS}" aria-hidden="true">{lines}</svg></span>'
        f'<span class="name" dir="auto">{html.escape(printable(name))}</span>'
        f'<span class="facts"><span><span class="word">confidence </span>{confidence:.2f}</span>'
        f'<span class="classes">{chips}</span></span>'
        f'</button><span class="files" hidden>{links}</span></li>\n'
    )


def address(path: Path, folder: Path) -> str:
    """Return the address of a file as seen from a page in a folder, percent-encoded byte by byte.

    Examples
    --------
    >>> address(Path("photos/a #1.jpg"), Path("out"))
    '../photos/a%20%231.jpg'
    """
    try:
        relative = Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return Path(os.path.abspath(path)).as_uri()
    return urllib.parse.quote(os.fsencode(relative))


def _embedded(rgb: np.ndarray) -> tuple[str, tuple[int, int]]:
    """Return a picture, scaled down, as a data URI within the limit of bytes, and its width and height."""
    from PIL import Image, features

    # Some builds of Pillow lack WebP; JPEG takes 1.5 times the bytes for the same quality.
    kind = "WEBP" if features.check("webp") else "JPEG"
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    scale = min(1.0, _SHORT / min(picture.size), _LONG / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, kind, quality=quality, method=_METHOD)
        if file.tell() <= _PICTURE_BYTES:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", size


def _paths(labels: np.ndarray, numbers: Sequence[int], size: tuple[int, int]) -> list[tuple[int, str]]:
    """Return the outlines of each class as SVG path data.

    Parameters
    ----------
    labels : (h, w) uint8
    numbers : sequence of int
        Classes in `labels`.
    size : (int, int)
        Width and height of the picture that the outlines are drawn on, `_UNITS` units to a pixel.
    """
    from PIL import Image

    # Traced larger than the picture, because they are drawn on the preview too.
    double = size[0] * _TRACED, size[1] * _TRACED
    small = np.asarray(Image.fromarray(np.ascontiguousarray(labels)).resize(double, Image.Resampling.NEAREST))
    length = np.count_nonzero(np.diff(small, axis=0)) + np.count_nonzero(np.diff(small, axis=1))
    step = max(3 * _TRACED, math.ceil(length / _POINTS))
    paths = []
    for number in numbers:
        data = "".join(_path(ring / _TRACED) for ring in smooth_rings(small == number, step=step))
        if data:
            paths.append((number, data))
    return paths


def _path(ring: np.ndarray) -> str:
    """Return a closed line, (n, 2) x and y in pixels, as SVG path data: one absolute point, then relative steps.

    Examples
    --------
    >>> _path(np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 2.5]]))
    'M4 4l4 0 0 6z'
    """
    points = np.round(ring * _UNITS).astype(np.int64)
    steps = " ".join(map(str, np.diff(points, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}l{steps}z"

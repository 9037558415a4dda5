"""Write ``gallery.html``: the photographs of a collection with their masks, in one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import os
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from vitnp import __version__
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io.path_text import printable
from vitnp.io.spool import Spool
from vitnp.io.write import replacing
from vitnp.masks.contours import smooth_rings
from vitnp.masks.palette import bright_colors

# Limit of the photographs on a page: at 10 KB each, browsers open it within a second and stay responsive.
LIMIT = 2000

# Short and long side of the embedded pictures in pixels. They are shown somewhat smaller, and enlarged on a click. The
# ratio bounds the proportions of the cards.
_SHORT, _LONG = 200, 600

# Limit of the bytes of a picture, before base64 makes four of three; the rest of a card takes 1 to 2 KB. The first
# quality that stays within it is used.
_PICTURE_BYTES = 7200
_QUALITIES = (72, 60, 48, 36, 24, 12)

# Limit of the points of a photograph's outlines, and units per pixel of their coordinates.
_POINTS = 360
_UNITS = 4


class GalleryWriter:
    """Write a gallery; it appears, complete, when the ``with`` block ends without an exception.

    The page filters by class and by name, sorts by name and by confidence, enlarges, and shows or hides the masks; it
    follows the system's light or dark theme and works by keyboard. It loads nothing, neither from the network nor from
    other files: pictures are embedded, and a content security policy forbids everything else. Text is buffered on the
    disk, so memory does not grow with the collection.

    Parameters
    ----------
    path : path
        ``gallery.html``; its folder exists.
    names : sequence of str
        Names of the classes 1, 2, ...; with a single one there is no filter by class.
    title : str
        Headline.
    total : int, optional
        Number of photographs to come. If it exceeds `limit`, evenly spaced ones are on the page; without it, the first
        ones.
    limit : int
        Maximum number of photographs on the page.

    Raises
    ------
    OutputError
        If the file or the buffer cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from vitnp.export.photograph_record import RegionRecord
    >>> gray, mask = np.full((60, 80, 3), 128, np.uint8), np.ones((60, 80), np.uint8)
    >>> photograph = PhotographRecord("a.jpg", 0.9, (RegionRecord(1, 0.9, 0.9, 0),), lambda: mask, lambda: gray)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with GalleryWriter(folder + "/gallery.html", ["class 1"]) as gallery:
    ...         gallery.add(photograph)
    ...     os.listdir(folder)
    ['gallery.html']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str],
        *,
        title: str = "Gallery",
        total: int | None = None,
        limit: int = LIMIT,
    ) -> None:
        self._path, self._names, self._title = path, list(names), title
        self._total, self._limit = total, limit
        self._offered = self._added = 0
        self._n_photographs: Counter[int] = Counter()  # per class
        self._cards = Spool(path)

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._cards:
            if kind is None:
                self._write()

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph if it is to be on the page and can still be read.

        Raises
        ------
        ValueError
            If the label map holds a class that has no name.
        """
        thumbnail = photograph.load_thumbnail() if self._wants_next() else None
        if thumbnail is not None:
            labels = photograph.label_map
            numbers = [int(number) for number in np.unique(labels) if number]
            if numbers and numbers[-1] > len(self._names):
                raise ValueError(f"a class must be from 1 to {len(self._names)}, got {numbers[-1]}")
            self._cards.write(self._card(photograph.name, thumbnail, labels, numbers, photograph.confidence))
            self._n_photographs.update(numbers)
            self._added += 1
        self._offered += 1

    def _wants_next(self) -> bool:
        """Tell whether the next photograph is to be on the page."""
        if self._total is None or self._total <= self._limit:
            return self._added < self._limit
        before, after = (number * self._limit // self._total for number in (self._offered, self._offered + 1))
        return after > before and self._added < self._limit

    def _card(self, name: str, rgb: np.ndarray, labels: np.ndarray, numbers: Sequence[int], confidence: float) -> str:
        """Return the list item of a photograph."""
        picture, (width, height) = _embedded(rgb)
        ratio = min(max(width / height, _SHORT / _LONG), _LONG / _SHORT)
        paths = _paths(labels, numbers, (width, height))
        # Each path is drawn twice, a wide white line below a colored one, to be visible on any background.
        lines = "".join(f'<path class="halo" d="{d}"/>' for _, d in paths)
        lines += "".join(f'<path class="k{number}" d="{d}"/>' for number, d in paths)
        chips = "".join(
            f'<span><i class="k{number}"></i>{html.escape(self._names[number - 1])}</span>' for number in numbers
        )
        return (
            f'<li class="card" data-k="{" ".join(map(str, numbers))}" data-c="{confidence:.4f}" '
            f'style="--r:{ratio:.4f}"><button type="button"><span class="shot">'
            f'<img alt="" loading="lazy" decoding="async" width="{width}" height="{height}" src="{picture}">'
            f'<svg viewBox="0 0 {width * _UNITS} {height * _UNITS}" aria-hidden="true">{lines}</svg></span>'
            f'<span class="name">{html.escape(printable(name))}</span>'
            f'<span class="facts"><span><span class="word">confidence </span>{confidence:.2f}</span>{chips}</span>'
            "</button></li>\n"
        )

    def _write(self) -> None:
        template = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
        script = template[template.index("<script>") + len("<script>") : template.index("</script>")]
        page = string.Template(template).substitute(
            generator=f"vitnp {__version__}",
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            title=html.escape(self._title),
            summary=self._summary(),
            colors=self._colors(),
            chips=self._chips(),
        )
        head, _, tail = page.partition("<!-- cards -->\n")
        with replacing(self._path) as file:
            file.write(head.encode("utf-8", "replace"))
            self._cards.copy_to(file)
            file.write(tail.encode())

    def _summary(self) -> str:
        """Return the number of photographs in words."""
        photographs = f"{self._added:,} photograph{'s' * (self._added != 1)}"
        return photographs if self._added == self._offered else f"{photographs}, chosen from {self._offered:,}"

    def _colors(self) -> str:
        """Return the style rules of the colors of the classes."""
        colors = bright_colors()[1 : len(self._names) + 1].tolist()
        return "".join(f".k{number}{{--k:#{bytes(color).hex()}}}" for number, color in enumerate(colors, 1))

    def _chips(self) -> str:
        """Return the buttons of the filter by class."""
        if len(self._names) < 2:
            return ""
        everything = f'<button type="button" data-k="" aria-pressed="true">all <small>{self._added:,}</small></button>'
        return everything + "".join(
            f'<button type="button" data-k="{number}" aria-pressed="false"><i class="k{number}"></i>'
            f"{html.escape(name)} <small>{self._n_photographs[number]:,}</small></button>"
            for number, name in enumerate(self._names, 1)
            if self._n_photographs[number]
        )


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
        picture.save(file, kind, quality=quality)
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

    small = np.asarray(Image.fromarray(np.ascontiguousarray(labels)).resize(size, Image.Resampling.NEAREST))
    length = np.count_nonzero(np.diff(small, axis=0)) + np.count_nonzero(np.diff(small, axis=1))
    step = max(3, math.ceil(length / _POINTS))
    paths = []
    for number in numbers:
        data = "".join(_path(ring) for ring in smooth_rings(small == number, step=step))
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

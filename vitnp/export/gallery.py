"""``gallery.html``: the photographs of a collection with their masks, in one page that needs nothing else."""

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
from typing import TYPE_CHECKING

import numpy as np

from vitnp import __version__
from vitnp.io.spool import Spool
from vitnp.io.write import replacing
from vitnp.masks.contours import smooth_rings
from vitnp.masks.palette import bright_colors

if TYPE_CHECKING:
    from typing import Self


# Photographs of a page: with 10 KB each, browsers open it in a second and stay quick.
LIMIT = 2000

# Short and long side of the embedded pictures; they are shown somewhat smaller, and enlarged on a click. Their ratio
# bounds the cards' proportions.
_SHORT, _LONG = 200, 600

# A picture's bytes; base64 makes four of three. The rest of a card takes one or two thousand.
_PICTURE_BYTES = 7200
_QUALITIES = (72, 60, 48, 36, 24, 12)

# Outlines are made of so many points at most, in units of a quarter pixel.
_POINTS = 360
_UNITS = 4


class GalleryWriter:
    """Write a gallery photograph by photograph; it appears, whole, when the ``with`` block ends without an error.

    The page filters by class and by name, sorts by name and by confidence, enlarges, and shows or hides the masks; it
    follows the system's light or dark theme and works by keyboard. It loads nothing, neither from the network nor from
    other files: pictures are part of it, and a content security policy forbids the rest. What is added waits on
    the disk, so memory doesn't grow with the collection.

    Parameters
    ----------
    path : path
        Of ``gallery.html``; its folder exists.
    classes : sequence of str
        Names of the classes 1, 2, ...; with a single one there is no filter by class.
    title : str
        Headline.
    total : int, optional
        Photographs to come. When they are more than `limit`, evenly spaced ones make the page; when left out,
        the first ones.
    limit : int
        Most photographs of the page.

    Raises
    ------
    OutputError
        When the file can't be written, at the end or while text is gathered.

    Examples
    --------
    >>> import tempfile
    >>> gray, labels = np.full((60, 80, 3), 128, np.uint8), np.ones((60, 80), np.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with GalleryWriter(folder + "/gallery.html", ["class 1"]) as gallery:
    ...         gallery.add("a.jpg", gray, labels, 0.9)
    ...     os.listdir(folder)
    ['gallery.html']
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: Sequence[str],
        *,
        title: str = "Gallery",
        total: int | None = None,
        limit: int = LIMIT,
    ) -> None:
        self._path, self._classes, self._title = path, list(classes), title
        self._total, self._limit = total, limit
        self._offered = self._added = 0
        self._photographs_of: Counter[int] = Counter()
        self._cards = Spool(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cards:
            if kind is None:
                self._write()

    @property
    def wants_next(self) -> bool:
        """Whether the next photograph will be on the page; if not, :meth:`skip` saves making its thumbnail."""
        if self._total is None or self._total <= self._limit:
            return self._added < self._limit
        before, after = (number * self._limit // self._total for number in (self._offered, self._offered + 1))
        return after > before and self._added < self._limit

    def skip(self) -> None:
        """Count a photograph without looking at it."""
        self._offered += 1

    def add(self, name: str, rgb: np.ndarray, labels: np.ndarray, confidence: float) -> None:
        """Add a photograph, if the page wants it.

        Parameters
        ----------
        name : str
            What stands below it: its path within the collection.
        rgb : array, shape (h, w, 3), uint8
            The photograph or a thumbnail, best with a short side of 200 pixels or more.
        labels : array, shape (h', w'), uint8
            Classes, 0 for background. The same picture at any size.
        confidence : float
            0..1.

        Raises
        ------
        ValueError
            When `labels` holds a class that has no name.
        """
        if self.wants_next:
            numbers = [int(number) for number in np.unique(labels) if number]
            if numbers and numbers[-1] > len(self._classes):
                raise ValueError(f"there is no class {numbers[-1]}; classes go from 1 to {len(self._classes)}")
            self._cards.write(self._card(name, rgb, labels, numbers, confidence))
            self._photographs_of.update(numbers)
            self._added += 1
        self._offered += 1

    def _card(self, name: str, rgb: np.ndarray, labels: np.ndarray, numbers: Sequence[int], confidence: float) -> str:
        picture, (width, height) = _embedded(rgb)
        ratio = min(max(width / height, _SHORT / _LONG), _LONG / _SHORT)
        paths = _paths(labels, numbers, (width, height))
        # A path is drawn twice, a wide white line below a colored one, so that it shows on any ground.
        lines = "".join(f'<path class="halo" d="{d}"/>' for _, d in paths)
        lines += "".join(f'<path class="k{number}" d="{d}"/>' for number, d in paths)
        found = "".join(
            f'<span><i class="k{number}"></i>{html.escape(self._classes[number - 1])}</span>' for number in numbers
        )
        return (
            f'<li class="card" data-k="{" ".join(map(str, numbers))}" data-c="{confidence:.4f}" '
            f'style="--r:{ratio:.4f}"><button type="button"><span class="shot">'
            f'<img alt="" loading="lazy" decoding="async" width="{width}" height="{height}" src="{picture}">'
            f'<svg viewBox="0 0 {width * _UNITS} {height * _UNITS}" aria-hidden="true">{lines}</svg></span>'
            f'<span class="name">{html.escape(name)}</span>'
            f'<span class="facts"><span><span class="word">confidence </span>{confidence:.2f}</span>{found}</span>'
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
        photographs = f"{self._added:,} photograph{'s' * (self._added != 1)}"
        return photographs if self._added == self._offered else f"{photographs}, chosen from {self._offered:,}"

    def _colors(self) -> str:
        colors = bright_colors()[1 : len(self._classes) + 1].tolist()
        return "".join(f".k{number}{{--k:#{bytes(color).hex()}}}" for number, color in enumerate(colors, 1))

    def _chips(self) -> str:
        if len(self._classes) < 2:
            return ""
        everything = f'<button type="button" data-k="" aria-pressed="true">all <small>{self._added:,}</small></button>'
        return everything + "".join(
            f'<button type="button" data-k="{number}" aria-pressed="false"><i class="k{number}"></i>'
            f"{html.escape(name)} <small>{self._photographs_of[number]:,}</small></button>"
            for number, name in enumerate(self._classes, 1)
            if self._photographs_of[number]
        )


def _embedded(rgb: np.ndarray) -> tuple[str, tuple[int, int]]:
    """A small picture as a data URI within the byte limit, and its width and height."""
    from PIL import Image, features

    # Not every Pillow that a distribution builds knows WebP; JPEG takes half as much again for the same look.
    kind = "WEBP" if features.check("webp") else "JPEG"
    picture = Image.fromarray(np.ascontiguousarray(rgb))
    scale = min(1.0, _SHORT / min(picture.size), _LONG / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, kind, quality=quality)
        if file.tell() <= _PICTURE_BYTES:
            break
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}", size


def _paths(labels: np.ndarray, numbers: Sequence[int], size: tuple[int, int]) -> list[tuple[int, str]]:
    """Outlines of each class as SVG path data, in `_UNITS` to a pixel of a picture of this width and height."""
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
    """A closed line as SVG path data: one absolute point, then steps.

    Examples
    --------
    >>> _path(np.array([[1.0, 1.0], [2.0, 1.0], [2.0, 2.5]]))
    'M4 4l4 0 0 6z'
    """
    points = np.round(ring * _UNITS).astype(np.int64)
    steps = " ".join(map(str, np.diff(points, axis=0).ravel().tolist())).replace(" -", "-")
    return f"M{points[0, 0]} {points[0, 1]}l{steps}z"

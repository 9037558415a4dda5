"""Write ``gallery.html``: the photographs of a collection with their masks, on a page where a person decides."""

from __future__ import annotations

import contextlib
import os
import shutil
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from vitnp.export.decisions import RunKey
from vitnp.export.gallery_card import address, card
from vitnp.export.gallery_page import CARDS, page
from vitnp.export.output_folder import OutputFolder, is_own_folder
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io.path_text import path_entries
from vitnp.io.spool import Spool
from vitnp.io.write import replacing

# Limit of the photographs on a page: at 10 KB each, browsers open it within a second and stay responsive.
LIMIT = 2000

# Of Pillow's JPEG: a preview takes 100 to 300 KB.
_PREVIEW_QUALITY = 82


class GalleryWriter:
    """Write a gallery; it appears, complete, when the ``with`` block ends without an exception.

    On the page a person looks through the photographs and decides: names classes and merges them, marks masks as wrong
    and photographs as showing no object. Decisions stay in the browser and are saved as ``decisions.json``, for
    :mod:`vitnp.export.apply`. The page works from disk, follows the light or dark theme, and is used by keyboard
    or by touch. It loads nothing from the network: thumbnails are embedded, previews lie beside it in a folder of its
    name, and a content security policy forbids everything else. Text is buffered on the disk, so memory does not grow
    with the collection.

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
    failures : callable
        Returns what could not be segmented, as in ``run.json``; called at the end.

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
        failures: Callable[[], Sequence[Mapping[str, str]]] = list,
    ) -> None:
        self._path, self._names, self._title = Path(path), list(names), title
        self._total, self._limit, self._failures = total, limit, failures
        self._offered = 0
        self._shown: list[list[object]] = []  # number and name of each photograph on the page
        self._key = RunKey()
        self._previews = OutputFolder(self._path.with_suffix(""))
        self._n_previews = 0
        self._cards = Spool(path)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._cards:
            suppressed = self._stack.__exit__(kind, error, traceback)  # puts the previews in place, or removes them
            if kind is None and not suppressed:
                if not self._n_previews and is_own_folder(self._previews.path):
                    shutil.rmtree(self._previews.path, ignore_errors=True)
                self._write()

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph if it is to be on the page and can still be read.

        Raises
        ------
        ValueError
            If the label map holds a class that has no name.
        """
        rgb = None
        if self._wants_next():
            rgb = (photograph.load_preview or photograph.load_thumbnail)()
        self._offered += 1
        self._key.add(photograph)
        if rgb is None:
            return
        labels = photograph.label_map
        numbers = [int(number) for number in np.unique(labels) if number]
        if numbers and numbers[-1] > len(self._names):
            raise ValueError(f"a class must be from 1 to {len(self._names)}, got {numbers[-1]}")
        folder = self._path.parent
        files = {} if photograph.path is None else {"photograph": photograph.path}
        files |= photograph.outputs
        item = card(
            photograph.name,
            rgb,
            labels,
            {number: self._names[number - 1] for number in numbers},
            photograph.confidence,
            preview=self._write_preview(rgb) if photograph.load_preview else "",
            files={kind: address(path, folder) for kind, path in files.items()},
        )
        self._cards.write(item)
        self._shown.append([self._offered, *path_entries("name", photograph.name).values()])

    def _wants_next(self) -> bool:
        """Tell whether the next photograph is to be on the page."""
        if self._total is None or self._total <= self._limit:
            return len(self._shown) < self._limit
        before, after = (number * self._limit // self._total for number in (self._offered, self._offered + 1))
        return after > before and len(self._shown) < self._limit

    def _write_preview(self, rgb: np.ndarray) -> str:
        """Write the preview of a photograph and return its address."""
        from PIL import Image

        if not self._n_previews:
            self._stack.enter_context(self._previews)
        self._n_previews += 1
        name = f"{self._offered:05d}.jpg"
        with replacing(self._previews.file(name)) as file:
            Image.fromarray(np.ascontiguousarray(rgb)).save(file, "JPEG", quality=_PREVIEW_QUALITY)
        return urllib.parse.quote(os.fsencode(f"{self._previews.path.name}/{name}"))

    def _write(self) -> None:
        whole = page(
            self._title,
            run={"run": self._key.hexdigest(), "classes": self._names, "photographs": self._shown},
            summary=self._summary(),
            failures=self._failures(),
        )
        head, _, tail = whole.partition(CARDS)
        with replacing(self._path) as file:
            file.write(head.encode("utf-8", "replace"))
            self._cards.copy_to(file)
            file.write(tail.encode("utf-8", "replace"))

    def _summary(self) -> str:
        """Return the number of photographs in words."""
        photographs = f"{len(self._shown):,} photograph{'s' * (len(self._shown) != 1)}"
        if len(self._shown) == self._offered:
            return photographs
        return f"{photographs}, chosen from {self._offered:,}"

"""COCO: ``annotations/instances_default.json`` beside ``images/``, as CVAT and Datumaro import it."""

from __future__ import annotations

import contextlib
import dataclasses
from types import TracebackType

from vitnp.export.coco import CocoWriter
from vitnp.export.formats.folder import FormatFolder
from vitnp.export.photograph_record import PhotographRecord


class CocoFolder(FormatFolder):
    """Write a COCO folder; see :class:`vitnp.export.coco.CocoWriter` for the file.

    References
    ----------
    Lin et al., "Microsoft COCO: common objects in context", ECCV 2014.
    """

    def __enter__(self) -> CocoFolder:
        super().__enter__()
        path = self.file("annotations", "instances_default.json")
        self._coco = CocoWriter(path, self.settings.names, tolerance=self.settings.tolerance)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The file is complete before the folder is put in its place.
        with contextlib.ExitStack() as stack:
            stack.push(super().__exit__)
            stack.push(self._coco.__exit__)
            if error is not None:
                raise error

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph and its regions."""
        self._coco.add(dataclasses.replace(photograph, name=self.image(photograph, "images")))

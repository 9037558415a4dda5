"""Write what was found as a picture and a JSON file beside it, both or none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitnp.errors import OutputError
from vitnp.io.path_text import read_path
from vitnp.io.stamp import foreign_error, refuse_foreign
from vitnp.io.write import check_names, prepare_folder, write_json, write_png, writing_together

if TYPE_CHECKING:
    from PIL import Image


class FindingsWriter:
    """Write ``STEM.png`` and ``STEM.json``.

    Parameters
    ----------
    stem : path
        Path of both files without their suffix. The folder is created.
    kind : str
        What they hold, such as "match"; the first entry of the JSON file, by which a later run knows it.
    overwrite : bool
        Whether files are replaced that vitnp did not write, or that are about other photographs.
    photographs : mapping of str to path, optional
        The photographs by the entry of the JSON file that is about them, if their names are those of the files.

    Attributes
    ----------
    picture, data : Path
        The two files.

    Raises
    ------
    OutputError
        If the files cannot be written, or another program's or those about other photographs are in the way: before
        anything is computed.
    """

    def __init__(
        self,
        stem: str | os.PathLike[str],
        kind: str,
        *,
        overwrite: bool = False,
        photographs: Mapping[str, str | os.PathLike[str]] | None = None,
    ) -> None:
        self.picture, self.data, self._kind = Path(f"{os.fspath(stem)}.png"), Path(f"{os.fspath(stem)}.json"), kind
        prepare_folder(self.picture.parent)
        check_names([self.picture, self.data])
        if not overwrite:
            refuse_foreign([self.picture])
            if os.path.lexists(self.data):
                content = self._own_content()
                if content is None:
                    raise foreign_error(self.data)
                self._refuse_others(content, photographs or {})

    def write(self, picture: Image.Image, content: Mapping[str, Any]) -> None:
        """Write both files.

        Raises
        ------
        OutputError
            If one of them cannot be written.
        """
        with writing_together(self.picture.parent):
            write_png(self.picture, picture, {"vitnp:kind": self._kind})
            write_json(self.data, {"vitnp": self._kind, "version": 1, **content})

    def _own_content(self) -> dict[str, Any] | None:
        """Return what an earlier run has written; None if the file is not of one."""
        try:
            content = json.loads(self.data.read_bytes()) if self.data.is_file() else None
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, dict) and content.get("vitnp") == self._kind else None

    def _refuse_others(self, content: dict[str, Any], photographs: Mapping[str, str | os.PathLike[str]]) -> None:
        """Raise OutputError if a file of an earlier run is about other photographs of the same names."""
        for entry, photograph in photographs.items():
            try:
                before = read_path(content[entry], "photograph")
            except (KeyError, TypeError, ValueError):
                continue
            if os.path.abspath(before) != os.path.abspath(photograph):
                raise OutputError(
                    f"{self.data} is about {before}, not {os.fspath(photograph)}; give another folder by --out, or "
                    "--overwrite to replace it"
                )

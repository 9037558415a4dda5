"""Write what was found as a picture and a JSON file beside it, both or none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        Whether files that vitnp did not write are replaced.

    Attributes
    ----------
    picture, data : Path
        The two files.

    Raises
    ------
    OutputError
        If the files cannot be written, or another program's are in the way: before anything is computed.
    """

    def __init__(self, stem: str | os.PathLike[str], kind: str, *, overwrite: bool = False) -> None:
        self.picture, self.data, self._kind = Path(f"{os.fspath(stem)}.png"), Path(f"{os.fspath(stem)}.json"), kind
        prepare_folder(self.picture.parent)
        check_names([self.picture, self.data])
        if not overwrite:
            refuse_foreign([self.picture])
            if os.path.lexists(self.data) and not self._is_own(self.data):
                raise foreign_error(self.data)

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

    def _is_own(self, path: Path) -> bool:
        """Tell whether a file is one of an earlier run."""
        try:
            content = json.loads(path.read_bytes()) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(content, dict) and content.get("vitnp") == self._kind

"""A folder of outputs: built under a temporary name, and put in place when it is complete."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vitnp import __version__
from vitnp.errors import OutputError
from vitnp.io import part_files, write
from vitnp.io.find import FOLDER_MARKER


class OutputFolder:
    """A context manager around a folder of files that belong together.

    The folder is built beside its final place and moved there when the ``with`` block ends without an exception;
    otherwise it is removed and the folder of an earlier run stays. A hidden file marks it as vitnp's: such a folder is
    replaced as a whole, and its pictures are not segmented.

    Parameters
    ----------
    path : path
        Final place; an earlier folder of vitnp there is replaced.
    settings : mapping, optional
        What the folder was made with, for :func:`folder_settings`.

    Raises
    ------
    OutputError
        If the folder exists and vitnp did not make it, or something cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._marker = {"software": f"vitnp {__version__}", "settings": dict(settings or {})}
        refuse_foreign_folder(self.path)
        self.folder = self.path  # until the block begins
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> OutputFolder:
        write.make_folder(self.path.parent)
        part_files.remove_abandoned(self.path.parent)
        try:
            self.folder = self._locks.enter_context(part_files.part_folder(self.path.parent))
        except OSError as error:
            raise OutputError(f"can't write {self.path}: {error.strerror}; choose another place") from None
        write.write_json(self.folder / FOLDER_MARKER, self._marker)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self._replace()
        finally:
            self._locks.close()

    def finish(self) -> None:
        """Write what needs all files, before the folder is put in place."""

    def file(self, *parts: str) -> Path:
        """Return the path of a file in the folder, and make the folder it lies in."""
        path = self.folder.joinpath(*parts)
        write.make_folder(path.parent)
        return path

    def _replace(self) -> None:
        """Put the finished folder in its place; if that fails, the earlier one is back in it."""
        earlier = self.path.with_name(f".vitnp-{secrets.token_hex(8)}.part")
        try:
            if self.path.exists():
                os.rename(self.path, earlier)
            try:
                os.rename(self.folder, self.path)
            except BaseException:
                if earlier.exists():
                    os.rename(earlier, self.path)
                raise
        except OSError as error:
            raise OutputError(f"can't write {self.path}: {error.strerror}; choose another place") from None
        shutil.rmtree(earlier, ignore_errors=True)


def refuse_foreign_folder(path: Path) -> None:
    """Check that a folder is absent, empty or one that vitnp made.

    Raises
    ------
    OutputError
        If it is not.
    """
    if path.exists() and not is_own_folder(path) and (path.is_file() or any(path.iterdir())):
        raise OutputError(f"{path}: this exists and vitnp did not make it; move it away or remove it")


def is_own_folder(path: Path) -> bool:
    """Tell whether vitnp made a folder."""
    return (path / FOLDER_MARKER).is_file()


def folder_settings(path: Path) -> dict[str, Any]:
    """Return what a folder was made with; nothing if that is not known."""
    if not is_own_folder(path):  # opening a pipe would wait for its writer
        return {}
    try:
        settings = json.loads((path / FOLDER_MARKER).read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}

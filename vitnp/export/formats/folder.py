"""A format's folder, with the photographs linked or copied."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import shutil
import unicodedata
from pathlib import Path, PurePosixPath

from vitnp.errors import ImageError, OutputError
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.output_folder import OutputFolder
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io import headers
from vitnp.io.path_text import printable

# Settings that make an export, kept in its folder so that it can be written anew.
_KEPT = ("tolerance", "copy", "split", "seed")


class FormatFolder(OutputFolder, abc.ABC):
    """Base of the writers of formats. Derived classes override :meth:`add` and :meth:`finish`.

    Parameters
    ----------
    path : path
        Folder of the format; that of an earlier export is replaced.
    settings : FormatSettings

    Raises
    ------
    OutputError
        If the folder exists and is not an earlier export, or something cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], settings: FormatSettings) -> None:
        super().__init__(path, {name: getattr(settings, name) for name in _KEPT})
        self.settings = settings
        self._taken: set[str] = set()

    @abc.abstractmethod
    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph."""

    def image(self, photograph: PhotographRecord, *parts: str) -> str:
        """Link or copy a photograph into a subfolder under a name of its own, and return that name.

        Folders become part of the name (``2023/a.jpg`` is ``2023_a.jpg``). No two names differ only by case, Unicode
        form or extension: where they would, a hash of the photograph's name is appended.

        Raises
        ------
        OutputError
            If the photograph is gone or another one, or it cannot be linked or copied.
        """
        name = self._unique_name(photograph.name)
        if photograph.path is None or not photograph.path.is_file():
            raise OutputError(
                f"{photograph.path or photograph.name}: this photograph is gone; put it back, or segment again"
            )
        # The results may come from others, so no other file is linked or copied.
        if not _is_picture_of(photograph.path, photograph.shape):
            raise OutputError(
                f"{photograph.path}: this is not the photograph that was segmented; put it back, or segment again"
            )
        target = self.file(*parts, name)
        if self.settings.copy:
            _copy(photograph.path, target)
        else:
            # As seen from the final place of the folder, so that links survive when everything moves together.
            _link(photograph.path, target, self.path.joinpath(*parts))
        return name

    def _unique_name(self, name: str) -> str:
        # The name is one of vitnp's own, so it can be text that every program reads.
        path = PurePosixPath(printable(name).replace("/", "_").replace("\\", "_"))
        stem = path.stem
        if _fold(stem) in self._taken:
            stem = f"{stem}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
        self._taken.add(_fold(stem))
        return stem + path.suffix


def _fold(name: str) -> str:
    """Return a form that is equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFC", name.casefold())


def _is_picture_of(path: Path, shape: tuple[int, int]) -> bool:
    """Tell whether a file is a picture of this height and width, upright or turned."""
    try:
        return sorted(headers.stored_size(path)) == sorted(shape)
    except ImageError:
        return False


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(
            f"can't copy {source} to {target}: {error.strerror}; free some space or leave out --copy"
        ) from None


def _link(source: Path, target: Path, final_folder: Path) -> None:
    """Make a hard link, which every program takes for a file; a symbolic link on another disk, a copy at worst.

    Some programs refuse a symbolic link that leaves the folder.
    """
    with contextlib.suppress(OSError):
        os.link(os.path.realpath(source), target)
        return
    destination: str | Path = os.path.abspath(source)
    with contextlib.suppress(ValueError):  # another drive of Windows
        destination = os.path.relpath(os.path.realpath(source), os.path.realpath(final_folder))
    try:
        os.symlink(destination, target)
    except OSError:
        _copy(source, target)

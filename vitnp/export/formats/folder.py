"""A format's folder: built under a temporary name, with the photographs linked or copied, and then put in place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import unicodedata
from pathlib import Path, PurePosixPath
from types import TracebackType

from vitnp import __version__
from vitnp.errors import ImageError, OutputError
from vitnp.export.formats.settings import FormatSettings
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io import headers, part_files, write
from vitnp.io.path_text import printable
from vitnp.io.stamp import EXPORT_MARKER


class FormatFolder:
    """Base of the writers of formats: a context manager around the folder of one format.

    The folder is built beside its final place and moved there when the ``with`` block ends without an exception;
    otherwise it is removed and the folder of an earlier export stays. Derived classes override :meth:`add` and
    :meth:`finish`.

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
        self.path, self.settings = Path(path), settings
        if (
            self.path.exists()
            and not (self.path / EXPORT_MARKER).is_file()
            and (self.path.is_file() or any(self.path.iterdir()))
        ):
            raise OutputError(f"{self.path}: this exists and is not an export of vitnp; move it away or remove it")
        self.folder = self.path  # until the block begins
        self._locks = contextlib.ExitStack()
        self._taken: set[str] = set()

    def __enter__(self) -> FormatFolder:
        write.make_folder(self.path.parent)
        part_files.remove_abandoned(self.path.parent)
        try:
            self.folder = self._locks.enter_context(part_files.part_folder(self.path.parent))
        except OSError as error:
            raise OutputError(f"can't write {self.path}: {error.strerror}; choose another place") from None
        write.write_text(self.folder / EXPORT_MARKER, f"vitnp {__version__}\n")
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

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what needs all photographs."""

    def file(self, *parts: str) -> Path:
        """Return the path of a file in the folder, and make the folder it lies in."""
        path = self.folder.joinpath(*parts)
        write.make_folder(path.parent)
        return path

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

    def _replace(self) -> None:
        """Put the finished folder in its place; if that fails, the earlier export is back in it."""
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

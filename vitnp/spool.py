"""Text that a long run gathers on the disk, not in memory, until the file it belongs to is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vitnp.errors import OutputError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Spool"]

# Short texts never touch the disk.
_MEMORY_BYTES = 1 << 20


class Spool:
    """A place to append text to; a nameless temporary file, so that whatever happens, nothing of it is left behind.

    Parameters
    ----------
    path : path
        The file that the text is for: the disk is the same, and errors name it.

    Examples
    --------
    >>> import io
    >>> with Spool("page.html") as spool:
    ...     spool.write("one, ")
    ...     spool.write("two")
    ...     target = io.BytesIO()
    ...     spool.copy_to(target)
    >>> target.getvalue()
    b'one, two'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._file = tempfile.SpooledTemporaryFile(_MEMORY_BYTES, dir=self._path.parent)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Append text. What UTF-8 can't express, parts of undecodable file names, becomes question marks.

        Raises
        ------
        OutputError
            When the system refuses.
        """
        try:
            self._file.write(text.encode("utf-8", "replace"))
        except OSError as error:
            raise OutputError(
                f"can't gather what belongs into {self._path}: {error.strerror or error}; write to another folder"
            ) from None

    def copy_to(self, file: BinaryIO) -> None:
        """Copy the whole text, as UTF-8, into an open file."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, _MEMORY_BYTES)

    def close(self) -> None:
        """Throw the text away."""
        self._file.close()

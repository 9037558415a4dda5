"""Buffers of a long run that live on disk instead of in memory: text for a file to come, and packed masks."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from vitnp.errors import OutputError

if TYPE_CHECKING:
    from typing import Self


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


class MaskSpool:
    """A place for masks that takes a dozen bytes of memory for each. Usable from several threads.

    Examples
    --------
    >>> spool = MaskSpool()
    >>> spool.put(7, np.array([[True, False]]))
    >>> spool.get(7)
    array([[ True, False]])
    """

    def __init__(self) -> None:
        # Whatever happens, the system removes it with the process; small runs never touch the disk.
        self._file = tempfile.SpooledTemporaryFile(1 << 22)  # noqa: SIM115
        self._lock = threading.Lock()
        self._places: dict[int, tuple[int, int, tuple[int, int]]] = {}
        self._end = 0

    def put(self, index: int, mask: np.ndarray) -> None:
        """Keep a mask (height, width) bool under a number.

        Raises
        ------
        OutputError
            When the disk of temporary files is full.
        """
        packed = zlib.compress(np.packbits(mask).tobytes(), 1)
        with self._lock:
            try:
                self._file.seek(self._end)
                self._file.write(packed)
                self._file.flush()  # a full disk is found here, not by whoever reads
            except OSError as error:
                raise OutputError(
                    f"can't keep masks in the folder for temporary files {tempfile.gettempdir()} ({error.strerror or error}); "
                    "free some space there, or set TMPDIR to another folder"
                ) from None
            self._places[index] = (self._end, len(packed), mask.shape)
            self._end += len(packed)

    def get(self, index: int) -> np.ndarray:
        """The mask kept under a number; KeyError when there is none."""
        start, length, shape = self._places[index]
        with self._lock:
            self._file.seek(start)
            packed = self._file.read(length)
        bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=shape[0] * shape[1])
        return bits.reshape(shape).view(bool)

    def __contains__(self, index: int) -> bool:
        return index in self._places

    def __del__(self) -> None:
        self._file.close()

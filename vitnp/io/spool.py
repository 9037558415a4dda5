"""Temporary files for data that grows during a long run: text of an output file, and packed masks."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from vitnp.errors import OutputError

# Smaller buffers stay in memory.
_TEXT_BYTES = 1 << 20
_MASK_BYTES = 1 << 22


def _cannot_buffer(what: str, error: OSError, advice: str) -> OutputError:
    return OutputError(f"cannot buffer {what}: {error.strerror or error}; {advice}")


class Spool:
    """Append-only text in an unnamed temporary file, which the system removes however the process ends.

    Parameters
    ----------
    path : path
        Output file that the text is for. The temporary file is in the same folder, and errors name `path`.

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
        folder = os.fspath(self._path.parent)
        self._file = tempfile.SpooledTemporaryFile(_TEXT_BYTES, dir=folder)  # noqa: SIM115 - closed by close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Append text; lone surrogates, which UTF-8 lacks, become backslash escapes.

        Raises
        ------
        OutputError
            If the temporary file cannot be written.
        """
        try:
            self._file.write(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise _cannot_buffer(f"output for {self._path}", error, "write to another folder") from None

    def copy_to(self, file: BinaryIO) -> None:
        """Copy the whole text, encoded as UTF-8, to an open file."""
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, _TEXT_BYTES)

    def close(self) -> None:
        """Discard the text."""
        self._file.close()


class MaskSpool:
    """Masks by number, compressed in an unnamed temporary file; safe to use from several threads.

    Only a few bytes per mask are kept in memory.

    Examples
    --------
    >>> spool = MaskSpool()
    >>> spool.put(7, np.array([[True, False]]))
    >>> spool.get(7)
    array([[ True, False]])
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MASK_BYTES)  # noqa: SIM115 - closed by __del__
        self._lock = threading.Lock()
        # Offset and length in the file, and the shape of the mask.
        self._index: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        self._end = 0

    def put(self, index: int, mask: np.ndarray) -> None:
        """Store a mask, (height, width) bool, under a number.

        Raises
        ------
        OutputError
            If the temporary file cannot be written.
        """
        packed = zlib.compress(self._to_bytes(mask), 1)
        with self._lock:
            try:
                self._file.seek(self._end)
                self._file.write(packed)
                self._file.flush()  # so that a full disk is an error of this call, not of a later one
            except OSError as error:
                raise _cannot_buffer(
                    f"masks in the temporary folder {tempfile.gettempdir()}",
                    error,
                    "free some space there, or set TMPDIR to another folder",
                ) from None
            self._index[index] = (self._end, len(packed), mask.shape)
            self._end += len(packed)

    def get(self, index: int) -> np.ndarray:
        """Return the mask stored under a number; raise KeyError if there is none."""
        offset, length, shape = self._index[index]
        with self._lock:
            self._file.seek(offset)
            packed = self._file.read(length)
        return self._from_bytes(zlib.decompress(packed), shape)

    @staticmethod
    def _to_bytes(mask: np.ndarray) -> bytes:
        return np.packbits(mask).tobytes()

    @staticmethod
    def _from_bytes(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return np.unpackbits(np.frombuffer(content, np.uint8), count=shape[0] * shape[1]).reshape(shape).view(bool)

    def __contains__(self, index: int) -> bool:
        return index in self._index

    def __del__(self) -> None:
        self._file.close()


class LabelSpool(MaskSpool):
    """Label images (height, width) uint8 by number, kept like masks.

    Examples
    --------
    >>> spool = LabelSpool()
    >>> spool.put(7, np.array([[0, 200]], np.uint8))
    >>> spool.get(7)
    array([[  0, 200]], dtype=uint8)
    """

    @staticmethod
    def _to_bytes(mask: np.ndarray) -> bytes:
        return mask.tobytes()

    @staticmethod
    def _from_bytes(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
        return np.frombuffer(content, np.uint8).reshape(shape)

"""Masks of a long run, kept on the disk: packed bits, deflated, in a nameless temporary file."""

from __future__ import annotations

import tempfile
import threading
import zlib

import numpy as np

from vitnp.errors import OutputError


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

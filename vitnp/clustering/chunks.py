"""Feature rows in chunks of one fixed size, from an array, a memory map or a stream of blocks.

Floating-point sums depend on how rows are grouped. With one fixed grouping a result is the same to the last bit however
the rows are passed in, and chunks can be processed anywhere, in any order, and added up afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError

# 8,192 x 192 float32 are 6 MB: matrix products run at full speed, and a few chunks in flight need little memory.
CHUNK_ROWS = 8192


def rows_per_block(n_rows: int) -> int:
    """Return how many rows are summed in one go, given the number of all rows: a chunk or an even part of it.

    Blocks are smaller when there are few rows, so that several threads have something to do, and as much as each other:
    with 13 blocks, one of two threads would have a sixth more than the other.

    Examples
    --------
    >>> [rows_per_block(n_rows) for n_rows in (100, 3600, 20_000, 1_000_000)]
    [256, 450, 1024, 8192]
    """
    if n_rows <= CHUNK_ROWS:
        return max(-(-n_rows // 8), 256)
    block = CHUNK_ROWS
    while n_rows < 32 * block and block > 1024 and block % 2 == 0:
        block //= 2
    return block


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive rows that are not loaded yet. Can be pickled.

    Attributes
    ----------
    first : int
        Number of the first row in the whole data.
    source : array or any object that returns a 2-D array when sliced
    part : slice
        Rows of the source.
    """

    first: int
    source: Any
    part: slice

    def rows(self) -> np.ndarray:
        """Load the rows; no copy is made when the source is an array."""
        rows = self.source[self.part]
        return kernels.array_module(rows).asarray(rows)


class Chunks:
    """Iterable of :class:`Chunk`, in the order of the rows; can be iterated any number of times.

    Parameters
    ----------
    x : (N, D) array, object with a 2-D ``shape`` and slices of rows, or iterable of (n, D) blocks
        Real numbers of any dtype. Blocks may have any number of rows, including none. Iterating again must yield the
        same rows, and a block must not change after it was yielded.
    n_features : int, optional
        D, if known beforehand.

    Attributes
    ----------
    n_rows : int or None
        N; for blocks None until set by the caller after the first pass. Later passes must then yield as many rows.
    n_features : int or None
        D; None if there are no blocks.

    Raises
    ------
    UsageError
        If `x` is an iterator, which can be read only once, or does not consist of numeric rows of one length.

    Examples
    --------
    >>> chunks = Chunks([np.ones((5000, 2)), np.ones((4000, 2))])
    >>> [chunk.rows().shape for chunk in chunks]
    [(8192, 2), (808, 2)]
    """

    def __init__(self, x: Any, n_features: int | None = None) -> None:
        self.n_rows: int | None = None
        self.n_features = n_features
        self._array: Any = None
        self._blocks: Iterable[Any] = ()
        if hasattr(x, "shape") and hasattr(x, "__getitem__"):
            self._array = x
        elif not isinstance(x, Iterable):
            raise UsageError(f"features must be an array or an iterable of blocks of rows, got {type(x).__name__}")
        elif iter(x) is x:
            raise UsageError(
                "features must be readable several times, but an iterator can be read only once; "
                "pass a list of blocks, or an object whose __iter__ starts anew"
            )
        else:
            first: Any = next(iter(x), None)
            if np.ndim(first) == 1:
                self._array = np.asarray(x)
            else:
                self._blocks = x
                if first is not None:
                    self._check(np.asarray(first))
        if self._array is not None:
            self._check(self._array)
            self.n_rows = int(self._array.shape[0])

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks_of_blocks() if self._array is None else self._chunks_of_array()

    @property
    def in_memory(self) -> bool:
        """Whether the rows are an array that the kernels read without a copy, so that access to any part is free."""
        x = self._array
        if self.device != "cpu":
            return True
        if not isinstance(x, np.ndarray) or x.dtype.char not in "efd" or not x.dtype.isnative:
            return False
        return x.strides[1] == x.itemsize or x.shape[1] == 1

    @property
    def device(self) -> str:
        """Device of the rows, "cpu" or "cuda"."""
        return kernels.device_of(self._array)

    @property
    def array(self) -> np.ndarray | None:
        """All rows as one array if they are :attr:`in_memory`, else None."""
        return self._array if self.in_memory else None

    def grouped(self, n_chunks: int) -> Iterator[Chunk]:
        """Iterate over an array in memory in larger chunks, `n_chunks` ordinary ones in each."""
        step = n_chunks * CHUNK_ROWS
        for first in range(0, self._array.shape[0], step):
            yield Chunk(first, self._array[first : first + step], slice(None))

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """Return single rows by number, (len(indices), D) float32, in the order given.

        Values too large for float32 become infinite.
        """
        with np.errstate(over="ignore"):
            if self._array is None:
                return self._take_from_blocks(np.asarray(indices))
            return np.concatenate([np.array(kernels.to_host(self._array[i : i + 1]), np.float32) for i in indices])

    def _take_from_blocks(self, indices: np.ndarray) -> np.ndarray:
        assert self.n_features is not None, "there are rows, so their length is known"
        rows = np.empty((len(indices), self.n_features), np.float32)
        for chunk in self:
            if chunk.first > indices.max():
                break
            here = indices // CHUNK_ROWS == chunk.first // CHUNK_ROWS
            if here.any():
                rows[here] = chunk.rows()[indices[here] - chunk.first]
        return rows

    def _chunks_of_array(self) -> Iterator[Chunk]:
        n_rows = self._array.shape[0]
        for first in range(0, n_rows, CHUNK_ROWS):
            part = slice(first, min(first + CHUNK_ROWS, n_rows))
            if isinstance(self._array, np.ndarray) or self.device != "cpu":
                # A view, so that only its own rows are copied when the chunk is pickled.
                yield Chunk(first, self._array[part], slice(None))
            else:
                yield Chunk(first, self._array, part)

    def _chunks_of_blocks(self) -> Iterator[Chunk]:
        """Join and split blocks to chunks of CHUNK_ROWS rows."""
        first, n_buffered = 0, 0
        buffer: list[np.ndarray] = []
        for block in self._blocks:
            block = np.asarray(block)
            self._check(block)
            while len(block):
                head, block = np.split(block, [CHUNK_ROWS - n_buffered])
                buffer.append(head)
                n_buffered += len(head)
                if n_buffered == CHUNK_ROWS:
                    yield _join(first, buffer)
                    first, n_buffered, buffer = first + n_buffered, 0, []
            if self.n_rows is not None and first + n_buffered > self.n_rows:
                break
        if self.n_rows not in (None, first + n_buffered):
            raise UsageError(
                f"blocks of features must yield the same rows each time, but there were {self.n_rows} rows once and "
                f"{first + n_buffered} or more another time"
            )
        if n_buffered:
            yield _join(first, buffer)

    def _check(self, block: Any) -> None:
        if len(block.shape) != 2:
            raise UsageError(f"features must be rows of numbers, (N, D), got the shape {tuple(block.shape)}")
        if np.dtype(getattr(block, "dtype", np.float32)).kind not in "fiub":
            raise UsageError(f"features must be real numbers, got {block.dtype}")
        if self.n_features is None:
            self.n_features = int(block.shape[1])
        elif block.shape[1] != self.n_features:
            raise UsageError(f"each row of features must have {self.n_features} numbers, got {block.shape[1]}")


def _join(first: int, blocks: list[np.ndarray]) -> Chunk:
    return Chunk(first, blocks[0] if len(blocks) == 1 else np.concatenate(blocks), slice(None))

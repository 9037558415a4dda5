"""Rows of features in chunks of one fixed size, whatever they come as: an array, a memory map, a stream of blocks.

Sums over many rows depend on how the rows are grouped. Grouping them always alike makes an answer independent of how the rows
are presented, to the last bit, and lets chunks be worked on anywhere, in any order, and added up afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError

# 8,192 x 192 float32 are 6 MB: products run at full speed, and a few chunks in flight are no burden.
CHUNK_ROWS = 8192


def rows_summed_together(count: int) -> int:
    """Rows whose sum is made in one go, given the number of all rows: a whole part of a chunk.

    Fewer where there are few rows, so that several threads have something to do.

    Examples
    --------
    >>> [rows_summed_together(count) for count in (100, 3600, 20_000, 1_000_000)]
    [256, 450, 2048, 8192]
    """
    if count <= CHUNK_ROWS:
        return max(-(-count // 8), 256)
    rows = CHUNK_ROWS
    while count < 8 * rows and rows > 512 and rows % 2 == 0:
        rows //= 2
    return rows


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Up to CHUNK_ROWS consecutive rows, not loaded yet. It can be pickled.

    Attributes
    ----------
    first : int
        Number of its first row in the whole.
    source : (n, D) array, or anything that gives one when sliced
    part : slice
        The chunk's rows in the source.
    """

    first: int
    source: Any
    part: slice

    def rows(self) -> np.ndarray:
        """The rows as they are, without a copy where the source is an array."""
        rows = self.source[self.part]
        return kernels.array_module(rows).asarray(rows)


class Chunks:
    """Chunks of features, in order; may be gone through any number of times.

    Parameters
    ----------
    x : (N, D) array, or anything with a two-dimensional ``shape`` and slices of rows; or an iterable of (n, D) blocks
        Real numbers of any type. Blocks may have any numbers of rows, none included; going through them once more must give the
        same rows, and a block must not be changed once it has been handed out.
    width : int, optional
        D, where it's known beforehand.

    Attributes
    ----------
    count : int or None
        N; for blocks None until it's set by whoever has gone through them. Once set, it's checked.
    width : int or None
        D; None where there are no blocks.

    Raises
    ------
    UsageError
        For an iterator, which can be gone through only once, and for anything that isn't made of rows of numbers of one width.

    Examples
    --------
    >>> chunks = Chunks([np.ones((5000, 2)), np.ones((4000, 2))])
    >>> [chunk.rows().shape for chunk in chunks]
    [(8192, 2), (808, 2)]
    """

    def __init__(self, x: Any, width: int | None = None) -> None:
        self.count, self.width = None, width
        self._array = self._blocks = None
        if hasattr(x, "shape") and hasattr(x, "__getitem__"):
            self._array = x
        elif not isinstance(x, Iterable):
            raise UsageError(f"features must be an array or an iterable of blocks of rows, not {type(x).__name__}")
        elif iter(x) is x:
            raise UsageError(
                "the features are an iterator, which can be read only once, but k-means reads them many times; "
                "give a list of blocks, or an object whose __iter__ begins anew"
            )
        else:
            first = next(iter(x), None)
            if np.ndim(first) == 1:
                self._array = np.asarray(x)
            else:
                self._blocks = x
                if first is not None:
                    self._check(np.asarray(first))
        if self._array is not None:
            self._check(self._array)
            self.count = int(self._array.shape[0])

    def __iter__(self) -> Iterator[Chunk]:
        return self._of_array() if self._blocks is None else self._of_blocks()

    @property
    def in_memory(self) -> bool:
        """Whether the rows are an array that kernels read as it is, so that any part of it costs nothing to have."""
        x = self._array
        if self.device != "cpu":
            return True
        if not isinstance(x, np.ndarray) or x.dtype.char not in "efd" or not x.dtype.isnative:
            return False
        return x.strides[1] == x.itemsize or x.shape[1] == 1

    @property
    def device(self) -> str:
        """Where the rows are."""
        return kernels.device_of(self._array)

    def whole(self) -> np.ndarray | None:
        """All rows at once, of an array in memory."""
        return self._array if self.in_memory else None

    def runs(self, chunks: int) -> Iterator[Chunk]:
        """The same rows in larger pieces, so many chunks in each, of an array in memory."""
        rows = chunks * CHUNK_ROWS
        for first in range(0, self.count, rows):
            yield Chunk(first, self._array[first : first + rows], slice(None))

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Single rows by number, (len(rows), D) float32, in the order asked for; values too large for it become infinite."""
        with np.errstate(over="ignore"):
            if self._blocks is None:
                return np.concatenate(
                    [np.array(kernels.to_host(self._array[row : row + 1]), np.float32) for row in rows]
                )
            return self._take_from_blocks(rows)

    def _take_from_blocks(self, rows: Sequence[int]) -> np.ndarray:
        taken = np.empty((len(rows), self.width), np.float32)
        wanted = np.asarray(rows)
        for chunk in self:
            if chunk.first > wanted.max():
                break
            here = wanted // CHUNK_ROWS == chunk.first // CHUNK_ROWS
            if here.any():
                taken[here] = chunk.rows()[wanted[here] - chunk.first]
        return taken

    def _of_array(self) -> Iterator[Chunk]:
        for first in range(0, self.count, CHUNK_ROWS):
            part = slice(first, min(first + CHUNK_ROWS, self.count))
            if isinstance(self._array, np.ndarray) or self.device != "cpu":
                # A view, so that only its own rows travel when the chunk is pickled.
                yield Chunk(first, self._array[part], slice(None))
            else:
                yield Chunk(first, self._array, part)

    def _of_blocks(self) -> Iterator[Chunk]:
        first, held, pieces = 0, 0, []
        for block in self._blocks:
            block = np.asarray(block)
            self._check(block)
            while len(block):
                piece, block = np.split(block, [CHUNK_ROWS - held])
                pieces.append(piece)
                held += len(piece)
                if held == CHUNK_ROWS:
                    yield self._joined(first, pieces)
                    first, held, pieces = first + held, 0, []
            if self.count is not None and first + held > self.count:
                break
        if self.count not in (None, first + held):
            raise UsageError(
                f"the blocks of features gave {self.count} rows once and {first + held} or more another time; "
                "they must give the same rows each time"
            )
        if held:
            yield self._joined(first, pieces)

    @staticmethod
    def _joined(first: int, pieces: list[np.ndarray]) -> Chunk:
        return Chunk(first, pieces[0] if len(pieces) == 1 else np.concatenate(pieces), slice(None))

    def _check(self, block: Any) -> None:
        if len(block.shape) != 2:
            raise UsageError(f"features must be rows of numbers, (N, D), but the shape is {tuple(block.shape)}")
        if np.dtype(getattr(block, "dtype", np.float32)).kind not in "fiub":
            raise UsageError(f"features must be real numbers, but their type is {block.dtype}")
        if self.width is None:
            self.width = int(block.shape[1])
        elif block.shape[1] != self.width:
            raise UsageError(f"there are {block.shape[1]} numbers in a row of features instead of {self.width}")

"""Scaled dot-product attention.

Letters in shapes: B images, N keys, M queries, D width, H heads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike
from vitnp.kernels.reference.transformer import softmax

from vitnp.errors import UsageError

# Queries whose scores against all keys are in memory at once: 256 x 4,097 float32 scores are 4 MB, about one cache.
QUERY_BLOCK = 256


class KVCache:
    """Keys and values of a batch of images: written as they are computed, then read by any number of queries.

    Parameters
    ----------
    images, tokens, width, heads : int
        B, N, D and H; D is a multiple of H.
    dtype : NumPy dtype
        Type of keys and values.
    slot : int
        Number of the buffer. Caches that are in use at the same time need different numbers, because compiled kernels
        reuse the memory of a slot.
    precision : {"fp32", "bf16", "fp16", "tf32", "int8"}
        Type of the products' operands, see :func:`pack_linear`.

    Examples
    --------
    >>> cache = KVCache(1, 2, 1, heads=1, dtype=np.float32)
    >>> cache.write(slice(0, 1), 0, np.ones((1, 2, 1), np.float32), np.array([[[1.0], [3.0]]], np.float32))
    >>> cache.attend(np.zeros((1, 1, 1), np.float32), slice(0, 1))
    array([[[2.]]], dtype=float32)
    """

    def __init__(
        self,
        images: int,
        tokens: int,
        width: int,
        heads: int,
        dtype: DTypeLike = np.float32,
        *,
        slot: int = 0,
        precision: str = "fp32",
    ):
        if precision not in ("fp32", "int8"):
            raise UsageError(f"precision must be fp32 or int8 without compiled kernels, got {precision}")
        self.heads = heads
        self.key = np.empty((images, tokens, width), dtype)
        self.value = np.empty_like(self.key)

    def write(self, images: slice, start: int, key: np.ndarray, value: np.ndarray) -> None:
        """Store keys and values (b, n, D) of the tokens from `start` on, for a range of images."""
        rows = slice(start, start + key.shape[1])
        self.key[images, rows], self.value[images, rows] = key, value

    def attend(self, query: np.ndarray, images: slice, out: np.ndarray | None = None) -> np.ndarray:
        """Return the attention output (b, M, D) of queries (b, M, D) over all keys and values of their images."""
        result = attention(query, self.key[images], self.value[images], self.heads)
        if out is None:
            return result
        out[...] = result
        return out


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int) -> np.ndarray:
    """Compute multi-head scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    query : (B, M, D) float
        Heads concatenated. M may differ from N.
    key, value : (B, N, D) float
    heads : int
        H; D is a multiple of it.

    Returns
    -------
    (B, M, D) float
        Weighted means of the values, heads concatenated.

    Examples
    --------
    >>> v = np.array([[[1.0], [3.0]]], np.float32)
    >>> attention(np.zeros((1, 1, 1), np.float32), np.zeros((1, 2, 1), np.float32), v, heads=1)
    array([[[2.]]], dtype=float32)
    """
    out = np.empty_like(query)
    size = query.shape[-1] // heads
    scale = query.dtype.type(size**-0.5)
    for image in range(query.shape[0]):
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            keys, values = key[image, :, columns], value[image, :, columns]
            for start in range(0, query.shape[1], QUERY_BLOCK):
                rows = slice(start, start + QUERY_BLOCK)
                scores = (query[image, rows, columns] * scale) @ keys.T
                out[image, rows, columns] = softmax(scores) @ values
    return out


def attention_row(query: np.ndarray, key: np.ndarray, heads: int) -> np.ndarray:
    """Compute the attention weights of one query over all keys, per head: ``softmax(q K^T / sqrt(D / H))``.

    Parameters
    ----------
    query : (B, 1, D) float
    key : (B, N, D) float
    heads : int

    Returns
    -------
    (B, H, N) float
        Each row sums to 1.

    Examples
    --------
    >>> attention_row(np.zeros((1, 1, 2)), np.ones((1, 4, 2)), heads=2)[0, 0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    batch, tokens, width = key.shape
    size = width // heads
    scale = query.dtype.type(size**-0.5)
    query = query.reshape(batch, heads, 1, size) * scale
    key = key.reshape(batch, tokens, heads, size).transpose(0, 2, 3, 1)  # (B, H, D/H, N)
    return softmax((query @ key)[:, :, 0])

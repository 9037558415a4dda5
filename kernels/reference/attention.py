"""Scaled dot-product attention.

Letters in shapes: B images, N keys, M queries, D width, H heads, d = D / H.
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
    precision : {"fp32", "bf16", "fp16", "tf32"}
        Type of the products' operands, see :func:`pack_linear`.
    rotation : (N, d) float, optional
        Rotary position embeddings of the tokens, see :func:`rotate`. Keys and queries are rotated as they are packed
        for the products; callers pass them as they are projected.

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
        rotation: np.ndarray | None = None,
    ):
        if precision != "fp32":
            raise UsageError(f"precision must be fp32 without compiled kernels, got {precision}")
        self.heads, self.rotation = heads, rotation
        self.key = np.empty((images, tokens, width), dtype)
        self.value = np.empty_like(self.key)

    def write(self, images: slice, start: int, key: np.ndarray, value: np.ndarray) -> None:
        """Store keys and values (b, n, D) of the tokens from `start` on, for a range of images."""
        rows = slice(start, start + key.shape[1])
        if self.rotation is not None:
            key = rotate(key, self.rotation[rows], self.heads)
        self.key[images, rows], self.value[images, rows] = key, value

    def attend(self, query: np.ndarray, images: slice, out: np.ndarray | None = None, *, start: int = 0) -> np.ndarray:
        """Return the attention output (b, M, D) of queries (b, M, D) over all keys and values of their images.

        The queries are those of the tokens from `start` on, which matters only with a rotation.
        """
        if self.rotation is not None:
            query = rotate(query, self.rotation[start : start + query.shape[1]], self.heads)
        result = attention(query, self.key[images], self.value[images], self.heads)
        if out is None:
            return result
        out[...] = result
        return out


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int, rotation: np.ndarray | None = None
) -> np.ndarray:
    """Compute multi-head scaled dot-product attention (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    query : (B, M, D) float
        Heads concatenated. M may differ from N.
    key, value : (B, N, D) float
    heads : int
        H; D is a multiple of it.
    rotation : (N, d) float, optional
        Rotary position embeddings of the keys' tokens, see :func:`rotate`. The queries are those of the first M tokens.

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
    if rotation is not None:
        query, key = rotate(query, rotation[: query.shape[1]], heads), rotate(key, rotation, heads)
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


def attention_row(query: np.ndarray, key: np.ndarray, heads: int, rotation: np.ndarray | None = None) -> np.ndarray:
    """Compute the attention weights of one query over all keys, per head: ``softmax(q K^T / sqrt(d))``.

    Parameters
    ----------
    query : (B, 1, D) float
    key : (B, N, D) float
    heads : int
    rotation : (N, d) float, optional
        Rotary position embeddings, see :func:`rotate`. The query is that of the first token.

    Returns
    -------
    (B, H, N) float
        Each row sums to 1.

    Examples
    --------
    >>> attention_row(np.zeros((1, 1, 2)), np.ones((1, 4, 2)), heads=2)[0, 0]
    array([0.25, 0.25, 0.25, 0.25])
    """
    if rotation is not None:
        query, key = rotate(query, rotation[:1], heads), rotate(key, rotation, heads)
    batch, tokens, width = key.shape
    size = width // heads
    scale = query.dtype.type(size**-0.5)
    query = query.reshape(batch, heads, 1, size) * scale
    key = key.reshape(batch, tokens, heads, size).transpose(0, 2, 3, 1)  # (B, H, D/H, N)
    return softmax((query @ key)[:, :, 0])


def rotate(x: np.ndarray, rotation: np.ndarray, heads: int) -> np.ndarray:
    """Rotate queries or keys by the positions of their tokens (Su et al. 2021, arXiv 2104.09864, equation 34).

    Numbers i and i + d / 2 of a head are the coordinates of a point, which is rotated by the i-th angle of the token.

    Parameters
    ----------
    x : (B, N, D) float
        Heads side by side.
    rotation : (N, d) float
        Cosines of the d / 2 angles of each token, then their sines; see :mod:`vitnp.vit.rotary`.
    heads : int

    Returns
    -------
    (B, N, D) float

    Examples
    --------
    >>> quarter_turn = np.array([[0.0, 1.0]])
    >>> rotate(np.array([[[1.0, 2.0]]]), quarter_turn, heads=1)
    array([[[-2.,  1.]]])
    """
    batch, tokens, width = x.shape
    half = width // heads // 2
    cos, sin = rotation[:, None, :half], rotation[:, None, half:]  # (N, 1, d / 2), for all heads
    x = x.reshape(batch, tokens, heads, 2 * half)
    first, second = x[..., :half], x[..., half:]
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(batch, tokens, width)

"""Every operation in plain NumPy: the specification, the oracle of the tests, the fallback.

All functions accept float32 or float64 and keep the type. Letters: B images, N tokens, D width, H heads, C inputs and
E outputs of a linear layer, P patch, S stride, K centroids. Stacked products run one matrix product an image, so that a
result never depends on its neighbors in the batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitnp.errors import UsageError

# Tokens that one thread takes through a layer at a time: None is all of an image. BLAS rounds otherwise when a product has other
# numbers of rows, so that an image must not be cut up.
BLOCK = None

# Rows of queries whose scores against all keys are in memory at once: 256 x 4,097 float32 scores are 4 MB, about a cache.
QUERY_BLOCK = 256

# k-means: rows whose products with all centroids are in memory at once. They are copied as float32, 6 MB at a width of 192.
ROW_BLOCK = 8192

# Neighbors: a block of cosines is 512 x 4,096 float32 = 8 MB. Products still run at full speed, and the selection that follows
# reads it from a near cache. The sizes are fixed because a matrix product may round differently in another shape.
QUERY_ROWS = 512
OTHER_ROWS = 4096


def pack_linear(weight: np.ndarray, precision: str = "fp32") -> np.ndarray:
    """Weights of a linear layer in the form that :func:`linear` reads fastest; done once for each layer.

    Parameters
    ----------
    weight : (E, C) float
        One row an output, as checkpoints store it.
    precision : {"fp32", "bf16", "fp16", "tf32"}
        Of the products' operands, among those of the device; sums are float32 always. Here "fp32" alone, which means the
        weights' own type.

    Returns
    -------
    object
        For :func:`linear`; here the weights themselves.

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), pack_linear(np.array([[3.0, 4.0]])))
    array([[11.]])
    """
    if precision != "fp32":
        raise UsageError(f"there is no precision {precision} without compiled kernels; choose fp32")
    return weight


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
    scale: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Affine map of the last axis and what a transformer does next: ``residual + scale f(x W^T + b)``.

    Parameters
    ----------
    x : (..., C) float
    weight : (E, C) float
        One row an output, as checkpoints store it; or what :func:`pack_linear` made of it.
    bias : (E,) float, optional
    activation : {"gelu"}, optional
        f, see :func:`gelu`; by default it does nothing.
    scale : (E,) float, optional
        LayerScale (Touvron et al. 2021, arXiv 2103.17239).
    residual : (..., E) float, optional
        Added; may be `out`.
    out : (..., E) float, optional
        Where to put the result, rows side by side; by default a new array.

    Returns
    -------
    (..., E) float

    Examples
    --------
    >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([5.0]))
    array([[16.]])
    """
    y = x @ weight.T
    if bias is not None:
        y += bias
    if activation == "gelu":
        y = gelu(y)
    if scale is not None:
        y *= scale
    if residual is not None:
        y += residual
    if out is None:
        return y
    out[...] = y
    return out


def layernorm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Normalize the last axis to mean 0 and variance 1, then scale and shift (Ba et al. 2016, equation 4).

    Parameters
    ----------
    x : (..., D) float
    weight, bias : (D,) float
    eps : float
        Added to the (biased) variance.
    out : (..., D) float, optional
        Where to put the result, rows side by side; by default a new array.

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> layernorm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 0.0)
    array([[-1.,  1.]])
    """
    centerd = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centerd).mean(axis=-1, keepdims=True)
    centerd /= np.sqrt(variance + x.dtype.type(eps))
    centerd *= weight
    centerd += bias
    if out is None:
        return centerd
    out[...] = centerd
    return out


def gelu(x: np.ndarray) -> np.ndarray:
    """Gaussian error linear unit in its exact form, ``x Phi(x)`` (Hendrycks and Gimpel 2016).

    Parameters
    ----------
    x : (...) float

    Returns
    -------
    (...) float

    Examples
    --------
    >>> gelu(np.array([0.0, 1.0])).round(4)
    array([0.    , 0.8413])
    """
    from scipy.special import erf

    y = erf(x * x.dtype.type(0.5**0.5))
    y += 1
    y *= x
    y *= x.dtype.type(0.5)
    return y


def swiglu(x: np.ndarray) -> np.ndarray:
    """Gated unit ``silu(a) b`` over the two halves of the last axis (Shazeer 2020, equation 6).

    Parameters
    ----------
    x : (..., 2E) float
        The gate ``a`` first, then ``b``.

    Returns
    -------
    (..., E) float

    Examples
    --------
    >>> swiglu(np.array([0.0, 3.0]))
    array([0.])
    """
    gate, value = np.split(x, 2, axis=-1)
    # tanh form of the sigmoid: it can't overflow.
    half = x.dtype.type(0.5)
    return gate * (half + half * np.tanh(half * gate)) * value


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, shifted by its maximum so that nothing overflows.

    Parameters
    ----------
    x : (..., N) float

    Returns
    -------
    (..., N) float

    Examples
    --------
    >>> softmax(np.array([1000.0, 1000.0]))
    array([0.5, 0.5])
    """
    y = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


class KVCache:
    """Keys and values of some images, laid out for attention: put in as they become known, read by any number of queries.

    Parameters
    ----------
    images, tokens, width, heads : int
        B, N, D and H; D is a multiple of H.
    dtype : NumPy type
    slot : int
        Two of them in use at the same time need different numbers where memory is used again.
    precision : {"fp32", "bf16", "fp16", "tf32"}
        Of the products' operands, see :func:`pack_linear`.

    Examples
    --------
    >>> held = KVCache(1, 2, 1, heads=1, dtype=np.float64)
    >>> held.write(slice(0, 1), 0, np.ones((1, 2, 1)), np.array([[[1.0], [3.0]]]))
    >>> held.attend(np.zeros((1, 1, 1)), slice(0, 1))
    array([[[2.]]])
    """

    def __init__(
        self,
        images: int,
        tokens: int,
        width: int,
        heads: int,
        dtype: type = np.float32,
        *,
        slot: int = 0,
        precision: str = "fp32",
    ):
        if precision != "fp32":
            raise UsageError(f"there is no precision {precision} without compiled kernels; choose fp32")
        self.heads = heads
        self.key, self.value = (np.empty((images, tokens, width), dtype) for _ in range(2))

    def write(self, images: slice, start: int, key: np.ndarray, value: np.ndarray) -> None:
        """Keys and values (b, n, D) of the tokens from `start` on of these images."""
        rows = slice(start, start + key.shape[1])
        self.key[images, rows], self.value[images, rows] = key, value

    def attend(self, query: np.ndarray, images: slice, out: np.ndarray | None = None) -> np.ndarray:
        """What queries (b, M, D) gather from all values of their images, (b, M, D)."""
        gathered = attention(query, self.key[images], self.value[images], self.heads)
        if out is None:
            return gathered
        out[...] = gathered
        return out


def attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int) -> np.ndarray:
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, equation 1).

    Parameters
    ----------
    query : (B, M, D) float
        Heads side by side; M may be smaller than N when only some rows are wanted.
    key, value : (B, N, D) float
    heads : int
        D is a multiple of it.

    Returns
    -------
    (B, M, D) float
        What each query gathers from the values, heads side by side.

    Examples
    --------
    >>> v = np.array([[[1.0], [3.0]]])
    >>> attention(np.zeros((1, 1, 1)), np.zeros((1, 2, 1)), v, heads=1)
    array([[[2.]]])
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
    """Attention weights of one query over all keys, for each head: softmax(q K^T / sqrt(D / H)).

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


def patch_embedding(
    images: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    stride: int,
    *,
    patch: int | None = None,
    start: int = 0,
    stop: int | None = None,
) -> np.ndarray:
    """Linear map of every P x P patch: a convolution with P x P kernels (Dosovitskiy et al. 2021, section 3.1).

    Parameters
    ----------
    images : (B, 3, height, width) float
    weight : (D, 3, P, P) float
        Or what :func:`pack_linear` made of it as a matrix (D, 3 P P).
    bias : (D,) float
    stride : int
        Pixels from one patch to the next; smaller than P for overlapping patches.
    patch : int, optional
        P, where the weights don't tell.
    start, stop : int
        Which patches: of rows * columns, row by row; rows = (height - P) // stride + 1, and columns likewise. By default all.

    Returns
    -------
    (B, stop - start, D) float

    Examples
    --------
    >>> patch_embedding(np.ones((1, 3, 4, 2)), np.ones((1, 3, 2, 2)), np.zeros(1), stride=2)
    array([[[12.],
            [12.]]])
    """
    patch = patch or weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), axis=(2, 3))[:, :, ::stride, ::stride]
    batch, channels, rows, columns = windows.shape[:4]
    # (B, 3, rows, columns, P, P) -> (B, rows, columns, 3, P, P): the order of the weight's own axes.
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, channels * patch * patch)
    return linear(flat[:, start:stop], weight.reshape(len(weight), -1), bias)


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length; a row of zeros stays a row of zeros.

    Parameters
    ----------
    x : (..., D) float

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    length = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x / np.where(length > 0, length, 1)


class Step(NamedTuple):
    """What one Lloyd iteration learns from some rows, in B blocks that are added up separately.

    Attributes
    ----------
    labels : (N,) int32
        Nearest centroid of each row; of equally near ones the lower.
    losses : (N,) float
        Loss of each row for its centroid; NaN or infinite for a row that isn't finite.
    sums : (B, K, D) float64
        Sum of each cluster's rows, at unit length or less the shift.
    counts : (K,) int64
        Rows of each cluster; an empty one has 0.
    inertia : (B,) float64
        Sum of the losses.
    """

    labels: np.ndarray
    losses: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: np.ndarray


def kmeans_rows(
    x: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None, dtype: type = np.float32
) -> np.ndarray:
    """Rows as k-means sees them: at unit length, or less a shift.

    Parameters
    ----------
    x : (N, D) real
    metric : {"cosine", "euclidean"}
    shift : (D,) float, optional
        With the Euclidean metric: a point near the rows. Far from the origin products are large, and their differences are lost
        in rounding.
    dtype : float type
        Of the computation.

    Returns
    -------
    (N, D) of `dtype`
        A row of zeros has no direction and stays one. One that isn't finite, or too large for the type, becomes NaN where
        lengths are asked for.

    Examples
    --------
    >>> kmeans_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.array(x, dtype, order="C")
        if metric == "euclidean":
            if shift is not None:
                rows -= shift
            return rows
        squares = np.einsum("nd,nd->n", rows, rows)
        faint = squares < 1e-30  # such rows' squares are rounded to nothing, unless the rows are zero
        if faint.any():
            peak = np.abs(rows[faint]).max(axis=1, keepdims=True, initial=0)
            rows[faint] /= np.where(peak > 0, peak, 1)
            squares[faint] = np.einsum("nd,nd->n", rows[faint], rows[faint])
        squares[~np.isfinite(squares)] = np.nan
        rows /= np.sqrt(np.where(squares == 0, 1, squares))[:, None]
        return rows


def kmeans_assign(
    x: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine", shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of every row; exact ties go to the lower index.

    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and |x|^2 is the same for every centroid: the nearest one has the largest x.c - |c|^2 / 2.
    The loss of the one chosen comes from the differences themselves, for what is good enough to compare centroids is not enough
    to tell how near one is.

    Parameters
    ----------
    x : (N, D) float
        Of any length with the cosine, which scales rows on the fly; a row of zeros has cosine 0 to everything.
    centroids : (K, D) float
        Their type is that of the computation. Unit rows with the cosine, less the shift with the Euclidean metric.
    metric : {"cosine", "euclidean"}
    shift : (D,) float, optional
        Subtracted from the rows, see :func:`kmeans_rows`.

    Returns
    -------
    labels : (N,) int32
    losses : (N,) float
        1 - cosine, or the squared distance; NaN or infinite for a row that isn't finite.

    Examples
    --------
    >>> labels, losses = kmeans_assign(np.array([[2.0, 0.0], [0.6, 0.8]]), np.eye(2))
    >>> labels, losses.round(1)
    (array([0, 1], dtype=int32), array([0. , 0.2]))
    """
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), centroids.dtype)
    for start in range(0, len(x), ROW_BLOCK):
        part = slice(start, start + ROW_BLOCK)
        rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=centroids.dtype)
        labels[part], losses[part] = _nearest(rows, centroids, metric)
    return labels, losses


def _nearest(rows: np.ndarray, centroids: np.ndarray, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and losses of prepared rows."""
    with np.errstate(over="ignore", invalid="ignore"):
        score = rows @ centroids.T  # (N, K)
        if metric == "euclidean":
            score -= (0.5 * np.square(centroids, dtype=np.float64).sum(axis=1)).astype(centroids.dtype)
        labels = score.argmax(axis=1)
        if metric == "cosine":
            return labels, 1 - np.take_along_axis(score, labels[:, None], axis=1)[:, 0]
        off = rows - centroids[labels]
        return labels, np.einsum("nd,nd->n", off, off)


def kmeans_step(
    x: np.ndarray,
    centroids: np.ndarray,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Step:
    """One Lloyd iteration's pass over the data: assign every row, add the rows up by cluster.

    Parameters
    ----------
    x, centroids, metric, shift
        As in :func:`kmeans_assign`.
    block : int, optional
        Rows that are added up together; all by default. Whoever adds the sums of the blocks in their order gets the same answer,
        to the bit, however the blocks were given to threads, machines or calls.

    Returns
    -------
    Step

    Examples
    --------
    >>> step = kmeans_step(np.array([[2.0, 0.0], [0.6, 0.8]]), np.eye(2))
    >>> step.sums, step.counts
    (array([[[1. , 0. ],
            [0.6, 0.8]]]), array([1, 1]))
    """
    block = block or max(len(x), 1)
    clusters, blocks = len(centroids), -(-len(x) // block)
    labels, losses = np.empty(len(x), np.int32), np.empty(len(x), centroids.dtype)
    sums, inertia = np.zeros((blocks, *centroids.shape)), np.zeros(blocks)
    for start in range(0, len(x), block):
        for first in range(start, min(start + block, len(x)), ROW_BLOCK):
            part = slice(first, min(first + ROW_BLOCK, start + block))
            rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=centroids.dtype)
            labels[part], losses[part] = _nearest(rows, centroids, metric)
            members = (labels[part] == np.arange(clusters)[:, None]).astype(rows.dtype)  # (K, rows), one-hot columns
            with np.errstate(over="ignore", invalid="ignore"):
                sums[start // block] += members @ rows
            inertia[start // block] += losses[part].sum(dtype=np.float64)
    return Step(labels, losses, sums, np.bincount(labels, minlength=clusters), inertia)


def kmeans_move(sums: np.ndarray, counts: np.ndarray, centroids: np.ndarray, *, metric: str = "cosine") -> np.ndarray:
    """Where a Lloyd iteration's centroids move to: the mean of their rows, with the cosine its direction.

    Parameters
    ----------
    sums : (K, D) float64
        Of each cluster's rows.
    counts : (K,) int
    centroids : (K, D) float
        Stay where there are no rows, or none but opposite ones that cancel out.
    metric : {"cosine", "euclidean"}

    Returns
    -------
    (K, D) of the centroids' type

    Examples
    --------
    >>> kmeans_move(np.array([[0.0, 3.0], [0.0, 0.0]]), np.array([4, 0]), np.eye(2))
    array([[0., 1.],
           [0., 1.]])
    """
    sizes = counts if metric == "euclidean" else np.sqrt(np.einsum("kd,kd->k", sums, sums))
    stuck = (counts == 0) | (sizes == 0)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (sums / np.where(stuck, 1, sizes)[:, None]).astype(centroids.dtype)
    moved[stuck] = centroids[stuck]
    return moved


class Moves(NamedTuple):
    """How far Lloyd's algorithm has come.

    Attributes
    ----------
    centroids : (K, D) float
        Where they have moved to.
    labels : (N,) int32 or None
        Of the last ordinary pass over the rows, None where there was none.
    sums, counts : (K, D) float64, (K,) int64
        Of that pass.
    history : list of float
        Inertia of each pass.
    ended : bool
        Whether that is the end, and that pass has these centroids. Otherwise the next pass with them isn't an ordinary one.
    """

    centroids: np.ndarray
    labels: np.ndarray | None
    sums: np.ndarray
    counts: np.ndarray
    history: list[float]
    ended: bool


def kmeans_moves(
    x: np.ndarray,
    centroids: np.ndarray,
    most: int,
    tolerance: float = 0.0,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
    block: int | None = None,
) -> Moves:
    """Lloyd iterations in one go, as long as they are ordinary: until a cluster is empty or a row isn't finite.

    Parameters
    ----------
    x, metric, shift, block
        As in :func:`kmeans_step`.
    centroids : (K, D) float
        Where to start.
    most : int
        Moves at most.
    tolerance : float
        Stop when the inertia falls by no more than this share of itself. With 0 until the labels stay.

    Returns
    -------
    Moves

    Examples
    --------
    >>> found = kmeans_moves(np.array([[0.0], [1.0], [9.0]]), np.array([[0.0], [1.0]]), 10, metric="euclidean")
    >>> found.centroids.ravel(), found.labels, found.history
    (array([0.5, 9. ]), array([0, 0, 1], dtype=int32), [64.0, 17.0, 0.5])
    """
    history: list[float] = []
    labels, sums, counts = None, np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    while True:
        step = kmeans_step(x, centroids, metric=metric, shift=shift, block=block)
        inertia = 0.0
        for part in step.inertia.tolist():  # in their order, as everybody does
            inertia += part
        if not step.counts.all() or not math.isfinite(inertia):
            return Moves(centroids, labels, sums, counts, history, False)
        fallen = history[-1] - inertia if history else math.inf
        ended = len(history) == most or (
            labels is not None and (fallen <= tolerance * history[-1] or np.array_equal(labels, step.labels))
        )
        history.append(inertia)
        labels, sums, counts = step.labels, sum(step.sums, np.zeros(centroids.shape)), step.counts
        if ended:
            return Moves(centroids, labels, sums, counts, history, True)
        centroids = kmeans_move(sums, counts, centroids, metric=metric)


def kmeans_closer(
    x: np.ndarray,
    candidates: np.ndarray,
    nearest: np.ndarray | None,
    *,
    metric: str = "cosine",
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """How near every row would be to its nearest centroid with each of some candidates added: k-means++ needs to know.

    Parameters
    ----------
    x, metric, shift
        As in :func:`kmeans_assign`.
    candidates : (M, D) float
    nearest : (N,) float or None
        Each row's loss for its nearest centroid so far.

    Returns
    -------
    (N, M) float
        The smaller of `nearest` and the loss for the candidate, never below 0.

    Examples
    --------
    >>> kmeans_closer(np.array([[2.0], [5.0]]), np.array([[1.0], [6.0]]), np.array([9.0, 2.0]), metric="euclidean")
    array([[1., 9.],
           [2., 1.]])
    """
    losses = np.empty((len(x), len(candidates)), candidates.dtype)
    for start in range(0, len(x), ROW_BLOCK):
        part = slice(start, start + ROW_BLOCK)
        rows = kmeans_rows(x[part], metric=metric, shift=shift, dtype=candidates.dtype)
        if metric == "cosine":
            losses[part] = np.maximum(1 - rows @ candidates.T, 0)
        else:
            for column, candidate in enumerate(candidates):
                off = rows - candidate
                losses[part, column] = np.einsum("nd,nd->n", off, off)
    return losses if nearest is None else np.minimum(losses, nearest[:, None])


def similarity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of every row of one matrix to every row of another.

    Parameters
    ----------
    x : (N, D) float
        Of any length; a row of zeros has cosine 0 to everything.
    y : (K, D) float

    Returns
    -------
    (N, K) float
        float64 if either is, else float32.

    Examples
    --------
    >>> similarity(np.array([[3.0, 4.0]]), np.array([[2.0, 0.0], [0.0, 0.0]]))
    array([[0.6, 0. ]])
    """
    dtype = np.result_type(x, y, np.float32)
    with np.errstate(invalid="ignore"):
        return kmeans_rows(x, dtype=dtype) @ kmeans_rows(y, dtype=dtype).T


def similarity_top(
    x: np.ndarray, y: np.ndarray, count: int, *, own: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `y` with the highest cosine to each row of `x`, highest first; of equal ones the lower row.

    With a count of 1 it's the arg-max. The matrix of all cosines never exists.

    Parameters
    ----------
    x : (N, D) float
        Of any length; a row of zeros has cosine 0 to everything.
    y : (K, D) float
    count : int
        1 to K, or to K - 1 with `own`.
    own : int, optional
        Rows of `x` are rows of `y`, from this one on, and none is compared with itself.

    Returns
    -------
    values : (N, count) float
        float64 if either is, else float32.
    indices : (N, count) int64

    Examples
    --------
    >>> values, indices = similarity_top(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]), 2)
    >>> values, indices
    (array([[1. , 0.8]]), array([[2, 1]]))
    """
    dtype = np.result_type(x, y, np.float32)
    others = kmeans_rows(y, dtype=dtype)
    values, indices = np.empty((len(x), count), dtype), np.empty((len(x), count), np.int64)
    for first in range(0, len(x), QUERY_ROWS):
        part = slice(first, first + QUERY_ROWS)
        rows = kmeans_rows(x[part], dtype=dtype)
        indices[part], values[part] = _search(rows, others, count, None if own is None else own + first)
    return values, indices


def _search(queries: np.ndarray, others: np.ndarray, count: int, own: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors of one block of queries.

    Only what beats a query's worst neighbor so far is looked at again. Candidates are pooled until there are as many as
    neighbors: then the sorting costs little beside the products, and the bar still rises often enough to keep the pool small.
    """
    rows = len(queries)
    best = (np.zeros((rows, count), np.int64), np.full((rows, count), -np.inf, queries.dtype))
    pool, pooled = [], 0
    for start in range(0, len(others), OTHER_ROWS):
        with np.errstate(invalid="ignore"):
            cosine = queries @ others[start : start + OTHER_ROWS].T  # (rows, columns)
        columns = cosine.shape[1]
        if own is not None:
            selves = np.arange(max(own, start), min(own + rows, start + columns))
            cosine[selves - own, selves - start] = -np.inf
        if start == 0 and columns > count:
            # No bar yet: the block's own count-th best is one.
            hits = cosine >= np.partition(cosine, -count, axis=1)[:, -count, None]
        else:
            # Later rows lose a tie, so equal isn't enough.
            hits = cosine > best[1][:, -1:]
        hits = np.flatnonzero(hits)
        pool.append((hits // columns, hits % columns + start, cosine.ravel()[hits]))
        pooled += len(hits)
        if pooled >= rows * count:
            best, pool, pooled = _merge(best, pool), [], 0
    return _merge(best, pool)


def _merge(
    best: tuple[np.ndarray, np.ndarray], pool: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """The best of the neighbors so far and the candidates (query, row, cosine) of the pool."""
    rows, count = best[0].shape
    so_far = (np.repeat(np.arange(rows), count), best[0].ravel(), best[1].ravel())
    query, row, cosine = (np.concatenate(part) for part in zip(so_far, *pool))
    order = np.lexsort((row, -cosine, query))
    members = np.bincount(query, minlength=rows)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(members) - members, members)
    kept = order[rank < count]
    return row[kept].reshape(rows, count), cosine[kept].reshape(rows, count)


@dataclasses.dataclass(frozen=True)
class Lattice:
    """N points in D dimensions among the M vertices of the permutohedral lattice that they touch.

    Attributes
    ----------
    vertex : (N, D + 1) int32
        The corners of the simplex around each point. Vertices are numbered as points first touch them.
    weight : (N, D + 1) float
        The point's barycentric coordinates among these corners. They sum to 1 until :func:`normalize_lattice` scales
        them.
    neighbor : (D + 1, M, 2) int32
        The vertices one step back and one step ahead along each axis of the lattice; M where no point touches any.
    """

    vertex: np.ndarray
    weight: np.ndarray
    neighbor: np.ndarray


def permutohedral_lattice(features: np.ndarray) -> Lattice:
    """Embed points so that a Gaussian blur over all pairs becomes a few sums (Adams, Baek and Davis 2010, section 3.1).

    The lattice tiles the hyperplane of the vectors whose D + 1 coordinates sum to 0. It is laid out such that
    :func:`lattice_filter` has the standard deviation 1 along every feature.

    Parameters
    ----------
    features : (D, N) float
        One row a feature, divided by the standard deviation wanted along it.

    Returns
    -------
    Lattice

    Raises
    ------
    ValueError
        If features aren't finite, or lie so far apart that the vertices can't be numbered.

    Examples
    --------
    >>> lattice = permutohedral_lattice(np.array([[0.0, 0.25]]))
    >>> lattice.vertex
    array([[0, 1],
           [0, 1]], dtype=int32)
    >>> lattice.weight.round(3)
    array([[1.   , 0.   ],
           [0.711, 0.289]])
    """
    scale, stride, origin = lattice_geometry(features)
    real = features.dtype.type
    axes, points = len(stride), features.shape[1]
    elevated = np.empty((axes, points), features.dtype)
    above = np.zeros(points, features.dtype)
    for axis in range(axes - 1, 0, -1):
        scaled = features[axis - 1] * scale[axis - 1]
        elevated[axis] = above - real(axis) * scaled
        above += scaled
    elevated[0] = above

    # Rounded to multiples of D + 1 a point is a vertex, if the coordinates still sum to 0 ...
    nearest = np.rint(elevated * (real(1) / real(axes)))
    excess = nearest.sum(axis=0).astype(np.int64)
    nearest *= real(axes)
    rest = elevated - nearest
    rank = np.zeros((axes, points), np.int64)
    for i in range(axes):
        for j in range(i + 1, axes):
            less = rest[i] < rest[j]
            rank[i] += less
            rank[j] += ~less
    # ... and if not, those that rounding moved most go one step back.
    rank += excess
    wrap = axes * ((rank < 0).astype(np.int64) - (rank >= axes))
    rank += wrap
    nearest += wrap
    rest = (elevated - nearest) * (real(1) / real(axes))

    # From corner to corner one coordinate takes D steps back, first the one of the highest rank, the others one ahead.
    place = np.empty_like(rank)
    np.put_along_axis(place, rank, np.arange(axes)[:, None], axis=0)
    rest = np.take_along_axis(rest, place, axis=0)
    weight = np.empty((points, axes), features.dtype)
    weight[:, 0] = (real(1) + rest[-1]) - rest[0]
    weight[:, 1:] = (rest[:-1] - rest[1:])[::-1].T
    corner = np.empty((points, axes), np.int64)
    corner[:, 0] = stride @ (nearest.astype(np.int64) - origin[:, None])
    corner[:, 1:] = stride.sum() - axes * stride[place[:0:-1].T]
    key, first, vertex = np.unique(corner.cumsum(axis=1), return_index=True, return_inverse=True)

    count = len(key)
    number = np.empty(count, np.int32)
    number[first.argsort()] = np.arange(count)
    neighbor = np.full((axes, count, 2), count, np.int32)
    for axis in range(axes):
        ahead = key + (stride.sum() - axes * stride[axis])
        at = np.searchsorted(key, ahead).clip(max=count - 1)
        found = np.flatnonzero(key[at] == ahead)
        neighbor[axis, number[found], 1] = number[at[found]]
        neighbor[axis, number[at[found]], 0] = number[found]
    return Lattice(number[vertex].reshape(points, axes), weight, neighbor)


def lattice_geometry(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How large a lattice is, and how the coordinates of a vertex are packed into one whole number, its key.

    The key is ``stride @ (coordinates - origin)``, in mixed radix. A vertex's last coordinate follows from the others,
    so its stride is 0.

    Parameters
    ----------
    features : (D, N) float

    Returns
    -------
    scale : (D,) float
        Factor of each feature before it is turned into the hyperplane.
    stride, origin : (D + 1,) int64

    Raises
    ------
    ValueError
        If features aren't finite, or lie so far apart that the vertices can't be numbered.

    Examples
    --------
    >>> lattice_geometry(np.array([[0.0, 1.0]]))
    (array([1.15470054]), array([1, 0]), array([ -8, -10]))
    """
    if not np.isfinite(features).all():
        raise ValueError("the features hold values that are not finite")
    axes = len(features) + 1
    # Splatting, blurring and slicing together have the variance 2 (D + 1)^2 / 3 in the lattice's unit (section 3.1).
    scale = [axes * math.sqrt(2 / 3) / math.sqrt((i + 1) * (i + 2)) for i in range(axes - 1)]
    # Coordinate j is the sum of the scaled features from j on, less j times the one before.
    low = [float(end) * s for end, s in zip(features.min(axis=1), scale)]
    high = [float(end) * s for end, s in zip(features.max(axis=1), scale)]
    least = [sum(low[j:]) - (j * high[j - 1] if j else 0) for j in range(axes)]
    most = [sum(high[j:]) - (j * low[j - 1] if j else 0) for j in range(axes)]
    margin = 4 * axes  # more than the way from a point to its vertices' neighbors
    origin = [math.floor(end) - margin for end in least]
    extent = [math.ceil(end) + margin - start for end, start in zip(most, origin)]
    stride = [math.prod(extent[axis + 1 : -1]) for axis in range(axes - 1)] + [0]
    precise = max(map(abs, least + most)) * np.finfo(features.dtype).eps < 0.1
    if not precise or math.prod(extent[:-1]) >= 2**62:
        raise ValueError("the features are too far apart for a lattice; choose larger standard deviations")
    return np.array(scale, features.dtype), np.array(stride, np.int64), np.array(origin, np.int64)


def lattice_filter(lattice: Lattice, values: np.ndarray) -> np.ndarray:
    """Sum values over all points, weighted by a Gaussian of their distance, by way of the lattice (Adams et al. 2010).

    Each value is spread over the corners around its point (splatting), the vertices are blurred by [1/2 1 1/2] along
    one axis after the other, and each point reads its corners (slicing). Up to a constant factor this is near
    ``sum over q of exp(-|f_p - f_q|^2 / 2) values_q``.

    Parameters
    ----------
    lattice : Lattice
    values : (N, C) float

    Returns
    -------
    (N, C) float

    Examples
    --------
    >>> lattice = permutohedral_lattice(np.array([[0.0, 0.0, 9.0]]))
    >>> lattice_filter(lattice, np.array([[1.0], [2.0], [0.0]])).ravel().tolist()
    [2.5, 2.5, 0.0]
    """
    axes, count, _ = lattice.neighbor.shape
    alpha = 1 / (1 + 0.5 ** (axes - 1))  # section 3.1: what the blur and the interpolation leave of a constant
    result = np.empty_like(values)
    for channel in range(values.shape[1]):
        spread = lattice.weight * values[:, channel, None]
        # The last one is no vertex: it stands for neighbors that aren't there, and stays 0.
        vertices = np.bincount(lattice.vertex.ravel(), spread.ravel(), count + 1)
        for axis in range(axes):
            vertices[:count] += 0.5 * vertices[lattice.neighbor[axis]].sum(axis=1)
        result[:, channel] = alpha * (lattice.weight * vertices[lattice.vertex]).sum(axis=1)
    return result


def normalize_lattice(lattice: Lattice) -> Lattice:
    """Scale the weights such that :func:`lattice_filter` becomes ``D^-1/2 K D^-1/2``, with D the sums of the rows of K.

    The symmetric normalization of Krähenbühl and Koltun's own program. The filter stays symmetric, up to the order of
    the axes, and a constant is about kept.

    Parameters
    ----------
    lattice : Lattice
        As :func:`permutohedral_lattice` makes it.

    Returns
    -------
    Lattice

    Examples
    --------
    >>> lattice = normalize_lattice(permutohedral_lattice(np.zeros((2, 4))))
    >>> lattice_filter(lattice, np.ones((4, 1))).round(6).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    sums = lattice_filter(lattice, np.ones((len(lattice.weight), 1), lattice.weight.dtype))
    return dataclasses.replace(lattice, weight=lattice.weight / np.sqrt(sums))


def mean_field(
    unary: np.ndarray, lattices: Sequence[Lattice], compatibility: Sequence[float], steps: int
) -> np.ndarray:
    """Approximate marginals of a fully connected CRF with Potts potentials (Krähenbühl and Koltun 2011, algorithm 1).

    From q = softmax(-unary) on, each step is ``q <- softmax(-unary + sum over kernels of compatibility * filter(q))``.
    That agreement is rewarded, instead of disagreement punished, is the same up to a constant.

    Parameters
    ----------
    unary : (N, C) float
        Energies: negative logarithms of probabilities.
    lattices : sequence of Lattice
        Normalized, one for each kernel.
    compatibility : sequence of float
        The weight of each kernel.
    steps : int

    Returns
    -------
    (N, C) float
        Each row sums to 1.

    Examples
    --------
    >>> lattice = normalize_lattice(permutohedral_lattice(np.zeros((1, 3))))
    >>> mean_field(-np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])), [lattice], [4.0], 5).round(2)
    array([[1.  , 0.  ],
           [1.  , 0.  ],
           [0.97, 0.03]])
    """
    q = softmax(-unary)
    for _ in range(steps):
        logits = -unary
        for lattice, gain in zip(lattices, compatibility):
            logits += unary.dtype.type(gain) * lattice_filter(lattice, q)
        q = softmax(logits)
    return q


def temporary(name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
    """An array to work in, with anything in it; a later one of the same name may take its memory.

    Examples
    --------
    >>> temporary("rows", 2, 3).shape
    (2, 3)
    """
    return np.empty(shape, dtype)


def precisions() -> tuple[str, ...]:
    """Of linear layers and attention, those that there are here.

    Examples
    --------
    >>> precisions()
    ('fp32',)
    """
    return ("fp32",)

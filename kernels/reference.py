"""Every operation in plain NumPy: the specification, the oracle of the tests, the fallback.

All functions accept float32 or float64 and keep the type. Letters: B images, N tokens, D width, H heads, C inputs and
E outputs of a linear layer, P patch, S stride, K centroids. Stacked products run one matrix product an image, so that a
result never depends on its neighbours in the batch.
"""

from __future__ import annotations

import numpy as np

# Rows of queries whose scores against all keys are in memory at once: 256 x 4,097 float32 scores are 4 MB, about a cache.
QUERY_BLOCK = 256


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Affine map of the last axis, ``x W^T + b``.

    Parameters
    ----------
    x : (..., C) float
    weight : (E, C) float
        One row an output, as checkpoints store it.
    bias : (E,) float, optional

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
    return y


def layernorm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift (Ba et al. 2016, equation 4).

    Parameters
    ----------
    x : (..., D) float
    weight, bias : (D,) float
    eps : float
        Added to the (biased) variance.

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> layernorm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 0.0)
    array([[-1.,  1.]])
    """
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred /= np.sqrt(variance + x.dtype.type(eps))
    centred *= weight
    centred += bias
    return centred


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


def patch_embedding(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Linear map of every P x P patch: a convolution with P x P kernels (Dosovitskiy et al. 2021, section 3.1).

    Parameters
    ----------
    images : (B, 3, height, width) float
    weight : (D, 3, P, P) float
    bias : (D,) float
    stride : int
        Pixels from one patch to the next; smaller than P for overlapping patches.

    Returns
    -------
    (B, rows * columns, D) float
        Patches row by row; rows = (height - P) // stride + 1, and columns likewise.

    Examples
    --------
    >>> patch_embedding(np.ones((1, 3, 4, 2)), np.ones((1, 3, 2, 2)), np.zeros(1), stride=2)
    array([[[12.],
            [12.]]])
    """
    width, channels, patch, _ = weight.shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch, patch), axis=(2, 3))[:, :, ::stride, ::stride]
    batch, _, rows, columns = windows.shape[:4]
    # (B, 3, rows, columns, P, P) -> (B, rows, columns, 3, P, P): the order of the weight's own axes.
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, channels * patch * patch)
    return linear(flat, weight.reshape(width, -1), bias)


def normalise_rows(x: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length; a row of zeros stays a row of zeros.

    Parameters
    ----------
    x : (..., D) float

    Returns
    -------
    (..., D) float

    Examples
    --------
    >>> normalise_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    length = np.sqrt(np.square(x).sum(axis=-1, keepdims=True))
    return x / np.where(length > 0, length, 1)


def kmeans_assign(x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid of every row by cosine; exact ties go to the lower index.

    Parameters
    ----------
    x : (N, D) float
        Unit rows.
    centroids : (K, D) float
        Unit rows.

    Returns
    -------
    labels : (N,) int64
    similarity : (N,) float
        Cosine to the centroid chosen.

    Examples
    --------
    >>> kmeans_assign(np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2))
    (array([0, 1]), array([1. , 0.8]))
    """
    cosine = x @ centroids.T  # (N, K)
    labels = cosine.argmax(axis=1)
    return labels, np.take_along_axis(cosine, labels[:, None], axis=1)[:, 0]


def kmeans_step(
    x: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One Lloyd iteration's pass over the data: assign every row, add the rows up by cluster.

    Parameters
    ----------
    x : (N, D) float
        Unit rows.
    centroids : (K, D) float
        Unit rows.

    Returns
    -------
    labels : (N,) int64
    similarity : (N,) float
        Cosine to the centroid chosen.
    sums : (K, D) float
        Sum of each cluster's rows.
    counts : (K,) int64
        Rows of each cluster; an empty one has 0.

    Examples
    --------
    >>> labels, similarity, sums, counts = kmeans_step(np.array([[1.0, 0.0], [0.6, 0.8]]), np.eye(2))
    >>> sums, counts
    (array([[1. , 0. ],
           [0.6, 0.8]]), array([1, 1]))
    """
    labels, similarity = kmeans_assign(x, centroids)
    clusters = len(centroids)
    members = (labels == np.arange(clusters)[:, None]).astype(x.dtype)  # (K, N), one-hot columns
    return labels, similarity, members @ x, np.bincount(labels, minlength=clusters)

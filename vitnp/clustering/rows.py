"""What the clusterings of feature rows share: their check, identical rows, the order of labels."""

from __future__ import annotations

import numpy as np

from vitnp.errors import UsageError


def check_rows(x: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the rows as an array.

    Raises
    ------
    UsageError
        If it has not two dimensions, there are more clusters than rows, or a row is not finite.
    """
    x = np.asarray(x)
    if x.ndim != 2:
        raise UsageError(f"features must be rows of numbers, (N, D), got the shape {x.shape}")
    if not 1 <= n_clusters <= len(x):
        raise UsageError(f"n_clusters must be between 1 and the number of rows, {len(x)}, got {n_clusters}")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise UsageError(f"row {int(finite.argmin())} of the features is not finite; remove or repair it")
    return x


def distinct_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the first of each set of identical rows, in order, and for each row the number of its set."""
    numbers: dict[bytes, int] = {}
    # Adding 0.0 turns -0.0 into 0.0, which is the same number with other bytes.
    number = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in x + 0.0])
    return np.unique(number, return_index=True)[1], number


def sort_by_size(labels: np.ndarray) -> np.ndarray:
    """Renumber labels by falling cluster size, in order of first appearance if equal.

    Examples
    --------
    >>> sort_by_size(np.array([7, 2, 2]))
    array([1, 0, 0])
    """
    _, first, inverse, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(counts))
    return rank[inverse]

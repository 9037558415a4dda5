"""Group near duplicates around representatives: leader clustering, in bounded memory.

Photographs are visited in the order of preference, the best one first. Each joins the most similar representative if
its cosine reaches the threshold, and is a representative itself otherwise. So every member is as similar to its
representative as the threshold says, and deleting all but the representatives loses nothing. Single linkage, the
connected components of similar pairs, does not promise that: a long chain of small changes would be one group, as a
panning shot whose first and last frames have nothing in common. Complete linkage does, but needs all pairs at once, and
its groups depend on the order of merging.
"""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.kernels.threads import blas, pool
from vitnp.retrieval.ranking import exact_cosines

# Rows visited at a time, and representatives they are compared with at a time: 32 MB of cosines. Fixed, so that the
# work is the same on every machine.
_ROWS, _LEADERS = 1024, 8192

# More than a cosine in float32 may be off; candidates this close to the threshold are compared in float64.
_SLACK = 1e-4


def group_rows(
    vectors: np.ndarray, rows: np.ndarray, threshold: float, *, n_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Assign rows to representatives.

    Time grows with the number of rows times that of representatives, memory with the number of rows.

    Parameters
    ----------
    vectors : (N, D) float32
        Of length 1.
    rows : (n,) int
        Rows of `vectors` in the order of preference.
    threshold : float
        Cosine that a member has at least to its representative.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the result does not depend on it.

    Returns
    -------
    leaders : (n,) int64
        Position in `rows` of the representative of each: its own if it is one. Of equally similar ones the first.
    cosines : (n,) float64
        Cosine to the representative.

    Examples
    --------
    >>> angles = np.radians([0, 5, 10, 90])
    >>> chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    >>> group_rows(chain, np.arange(4), 0.99)[0]
    array([0, 0, 2, 3])
    """
    leaders, cosines = np.arange(len(rows)), np.ones(len(rows))
    found = np.empty(len(rows), np.int64)  # positions of representatives, so far n_found
    n_found = 0
    with blas.one_blas_thread(), pool.thread_limit(pool.resolve_n_threads(n_threads)):
        for start in range(0, len(rows), _ROWS):
            x = vectors[rows[start : start + _ROWS]]
            best = _Best(len(x), threshold)
            for first in range(0, n_found, _LEADERS):
                some = found[first : min(first + _LEADERS, n_found)]
                best.compare(x, vectors[rows[some]], some)
            new = start + best.settle(x, start)
            members = slice(start, start + len(x))
            leaders[members] = np.where(best.leaders < 0, leaders[members], best.leaders)
            cosines[members] = np.where(best.leaders < 0, 1, best.cosines)
            found[n_found : n_found + len(new)] = new
            n_found += len(new)
    return leaders, cosines


class _Best:
    """The most similar representative of each row of a block, among those whose cosine reaches the threshold.

    Attributes
    ----------
    leaders : (n,) int64
        Position of the representative, -1 if there is none.
    cosines : (n,) float64
    """

    def __init__(self, count: int, threshold: float) -> None:
        self._threshold = threshold
        self.leaders, self.cosines = np.full(count, -1, np.int64), np.full(count, -np.inf)

    def compare(self, x: np.ndarray, y: np.ndarray, positions: np.ndarray) -> None:
        """Compare all rows with representatives at some positions, which come after those compared before."""
        cosines = kernels.for_device().similarity(x, y)
        highest = np.maximum(cosines.max(axis=1, keepdims=True), np.float32(self._threshold))
        members, others = np.nonzero(cosines >= highest - np.float32(_SLACK))
        exact = exact_cosines(x[members], y[others])
        for member, position, cosine in zip(members, positions[others], exact):
            self._offer(int(member), int(position), cosine)

    def settle(self, x: np.ndarray, start: int) -> np.ndarray:
        """Compare the rows one by one with those before them that are representatives; return which of them are."""
        near = kernels.for_device().similarity(x, x) >= self._threshold - _SLACK
        is_new = np.zeros(len(x), bool)
        for member in range(len(x)):
            others = np.flatnonzero(near[member, :member] & is_new[:member])
            for other, cosine in zip(others, exact_cosines(x[member], x[others])):
                self._offer(member, start + int(other), cosine)
            is_new[member] = self.leaders[member] < 0
        return np.flatnonzero(is_new)

    def _offer(self, member: int, position: int, cosine: float) -> None:
        """Take a representative if it is similar enough, and more so than the one so far."""
        if cosine >= self._threshold and cosine > self.cosines[member]:
            self.leaders[member], self.cosines[member] = position, cosine

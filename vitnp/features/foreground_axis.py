"""The first principal component as a foreground score, as in the DINOv2 paper (arXiv 2304.07193, figure 1)."""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp.clustering.chunks import Chunks
from vitnp.features import moments
from vitnp.features.components import leading_components, project
from vitnp.features.moments import Moments


@dataclasses.dataclass(frozen=True, eq=False)
class ForegroundAxis:
    """The first component of all patches, and the threshold that separates the foreground.

    Attributes
    ----------
    component : (D,) float64
        Unit vector that points to the foreground.
    mean : (D,) float64
        Mean of all patches.
    deviation : float
        Standard deviation of the patches along the component.
    threshold : float
        In standard deviations.
    """

    component: np.ndarray
    mean: np.ndarray
    deviation: float
    threshold: float

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Return by how many standard deviations rows (n, D) lie above the threshold, (n,) float64."""
        along = project(rows, self.mean, self.component[None])[:, 0]
        return along / (self.deviation or 1.0) - self.threshold


def fit_axis(chunks: Chunks, whole: Moments, threshold: str | float, n_threads: int) -> ForegroundAxis:
    """Turn the first component of all rows to the foreground, and find the threshold.

    Parameters
    ----------
    chunks : Chunks
        All rows.
    whole : Moments
        Their moments, weighted by attention if it is known: the foreground is the side with more of it. Without weights
        it is the side with fewer rows.
    threshold : "auto" or float
        In standard deviations; "auto" is that of Otsu (1979).
    n_threads : int

    Returns
    -------
    ForegroundAxis
    """
    (component,), (variance,) = leading_components(whole, 1)
    deviation = float(np.sqrt(variance))
    if whole.weight > 0 and component @ (whole.weighted - whole.weight * whole.mean) < 0:
        component = -component
    if isinstance(threshold, str) or whole.weight <= 0:
        (counts,) = moments.histograms(
            chunks, n_threads, lambda rows: project(rows, whole.mean, component[None]), np.array([deviation])
        )
        best = moments.otsu_threshold(counts)
        above = int(counts[moments.bin_edges(np.arange(moments.BINS)) >= best].sum())
        if whole.weight <= 0 and 2 * above > whole.n:
            component, best = -component, -best
        threshold = best if isinstance(threshold, str) else threshold
    return ForegroundAxis(component, whole.mean, deviation, float(threshold))

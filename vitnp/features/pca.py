"""Principal components of patch features: one basis, and so one meaning of each color, for any number of photographs.

With `foreground` this is the picture of the DINOv2 paper (Oquab et al. 2023, arXiv 2304.07193, figure 1): the first
component separates foreground and background, and the colors are the components of the foreground alone.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitnp.clustering.chunks import Chunks
from vitnp.clustering.estimator import Estimator, check_rows, not_fitted
from vitnp.errors import UsageError
from vitnp.features import moments, pca_file
from vitnp.features.components import leading_components, project, to_bytes
from vitnp.features.foreground_axis import ForegroundAxis, fit_axis
from vitnp.features.moments import Moments
from vitnp.kernels.threads import blas, pool

# Percentiles of each component that are shown as 0 and 255: a few outliers must not make all other colors pale.
PERCENTILES = (1.0, 99.0)


class PatchPCA(Estimator):
    """Principal components of patch features, and the colors that they give.

    Rows are read in chunks of a fixed size, so that there may be more than fit into memory: one pass for mean and
    covariance, in float64, and one for percentiles, which `foreground` doubles. The result is the same to the bit for
    any number of threads and however the rows are passed in.

    Conventions are those of scikit-learn (without scikit-learn). The sign of each component is chosen so that its
    entry of the largest magnitude is positive, as in ``sklearn.decomposition.PCA``.

    Parameters
    ----------
    n_components : int
        K; 3 for colors.
    foreground : None, "auto" or float
        Fit the components to the foreground alone, as the DINOv2 paper does: rows whose first component (of all rows)
        is above a threshold. A number is the threshold in standard deviations; 0 is that of the paper. "auto" is the
        threshold that separates the rows into two classes best (Otsu 1979).
    n_jobs : int, optional
        Number of chunks processed at the same time; all cores if None or -1.

    Attributes
    ----------
    components_ : (K, D) float64
        Orthonormal, by descending variance.
    mean_ : (D,) float64
    explained_variance_ : (K,) float64
    explained_variance_ratio_ : (K,) float64
        Share of the total variance.
    n_samples_ : int
        Number of rows that the components were fitted to.
    range_ : (2, K) float64
        First and 99th percentile of each component, shown as 0 and 255.
    foreground_ : ForegroundAxis or None
    n_features_in_ : int
        D.
    features_ : mapping
        What the features depend on, if it is known: fields of :class:`vitnp.features.spec.FeatureSpec`.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(500, 8)) * [1, 9, 1, 1, 5, 1, 1, 3]
    >>> pca = PatchPCA().fit(rows)
    >>> np.abs(pca.components_).argmax(axis=1).tolist()
    [1, 4, 7]
    >>> pca.colors(rows).shape, pca.colors(rows).dtype
    ((500, 3), dtype('uint8'))
    """

    components_: np.ndarray
    mean_: np.ndarray
    explained_variance_: np.ndarray
    explained_variance_ratio_: np.ndarray
    n_samples_: int
    range_: np.ndarray
    foreground_: ForegroundAxis | None
    features_: Mapping[str, Any]

    def __init__(
        self, n_components: int = 3, *, foreground: str | float | None = None, n_jobs: int | None = None
    ) -> None:
        self.n_components = n_components
        self.foreground = foreground
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: object = None, *, attention: Any = None) -> PatchPCA:
        """Compute the components.

        Parameters
        ----------
        X : (N, D) array, memory map, object with ``shape`` and slices of rows, or iterable of (n, D) blocks
            Real numbers, for example float16. See :class:`vitnp.clustering.chunks.Chunks`.
        y : ignored
        attention : (N,) array, optional
            CLS attention of each row. With `foreground` it tells which side of the first component is the foreground:
            that with more attention. By default the foreground is the side with fewer rows.

        Returns
        -------
        PatchPCA
            This object.

        Raises
        ------
        UsageError
            If a parameter is out of its range, there are fewer rows or columns than components, a row is not finite
            (the first one is named), or X is an iterator, which can be read only once.
        """
        self.check_parameters()
        chunks = Chunks(check_rows(X))
        weights = None if attention is None else np.asarray(attention)
        with blas.one_blas_thread():
            whole = moments.moments(chunks, self._n_threads, weights=weights)
            self._check_size(whole, "rows")
            if weights is not None and weights.shape != (whole.n,):
                raise UsageError(f"attention must have one number per row, ({whole.n},), got {weights.shape}")
            axis, part = None, whole
            if self.foreground is not None:
                axis = fit_axis(chunks, whole, self.foreground, self._n_threads)
                part = moments.moments(chunks, self._n_threads, keep=lambda rows: axis.score(rows) > 0)
                self._check_size(part, "rows above the threshold of the foreground")
            components, variances = leading_components(part, self.n_components)
            deviations = np.sqrt(variances)
            counts = moments.histograms(
                chunks,
                self._n_threads,
                lambda rows: project(rows, part.mean, components),
                deviations,
                None if axis is None else lambda rows: axis.score(rows) > 0,
            )
        self.components_, self.mean_, self.foreground_ = components, part.mean, axis
        self.explained_variance_ = variances
        total = float(np.trace(part.covariance))
        self.explained_variance_ratio_ = variances / total if total > 0 else np.zeros_like(variances)
        self.n_samples_ = part.n
        self.range_ = np.stack([moments.percentiles(counts, deviations, percent) for percent in PERCENTILES])
        self.features_ = {}
        self._note_columns(X, whole.mean.size)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the components of rows, (N, K) float32, or float64 if the rows are.

        Parameters
        ----------
        X : as for :meth:`fit`

        Raises
        ------
        UsageError
            If the rows have another length than those of :meth:`fit` or are not finite, or :meth:`fit` was not called.
        """
        return self._by_chunk(X, lambda rows: project(rows, self.mean_, self.components_))

    def fit_transform(self, X: Any, y: object = None, *, attention: Any = None) -> np.ndarray:
        """Compute the components and return :meth:`transform` of the same rows."""
        return self.fit(X, attention=attention).transform(X)

    def scaled(self, X: Any) -> np.ndarray:
        """Return components of rows in which the range of colors is 0 to 1, (N, K) float32; outliers lie beyond it."""
        low, high = self._range
        return ((self.transform(X) - low) / (high - low)).astype(np.float32)

    def foreground_score(self, X: Any) -> np.ndarray:
        """Return by how many standard deviations rows are above the threshold of the foreground, (N,) float.

        Without a foreground it is 1 for every row.
        """
        axis = self.foreground_ if hasattr(self, "foreground_") else None
        return self._by_chunk(X, lambda rows: np.ones(len(rows)) if axis is None else axis.score(rows))

    def colors(self, X: Any) -> np.ndarray:
        """Return a color for each row, (N, 3) uint8: the components as red, green and blue; the background is black.

        Raises
        ------
        UsageError
            As for :meth:`transform`, and if there are not three components.
        """
        self.check_colors()
        colors = to_bytes(self.scaled(X))
        colors[self.foreground_score(X) <= 0] = 0
        return colors

    def check_colors(self) -> None:
        """Check that there are three components.

        Raises
        ------
        UsageError
            If not, or if :meth:`fit` was not called.
        """
        self._check_fitted()
        if len(self.components_) != 3:
            raise UsageError(f"colors need three components, got {len(self.components_)}; use PatchPCA(3)")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, in full or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        UsageError
            If :meth:`fit` was not called.
        """
        self._check_fitted()
        pca_file.write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PatchPCA:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            If there is no such file, it holds no basis, or it is damaged.
        """
        return pca_file.read(path, cls)

    @property
    def digest(self) -> str:
        """Fingerprint of everything that colors depend on: 32 hexadecimal digits."""
        return pca_file.digest(self)

    def _by_chunk(self, X: Any, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the results of a function of rows (n, D) for all rows, float32, or float64 if the rows are."""
        self._check_fitted()
        self._check_columns(X)
        x = check_rows(X)
        dtype = np.float64 if getattr(x, "dtype", None) == np.float64 else np.float32
        chunks = Chunks(x, self.n_features_in_)
        parts = [function(moments.rows_of(chunk)).astype(dtype) for chunk in chunks]
        return np.concatenate([function(np.empty((0, self.n_features_in_))).astype(dtype), *parts])

    @property
    def _n_threads(self) -> int:
        return pool.resolve_n_threads(None if self.n_jobs == -1 else self.n_jobs)

    @property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the colors; around a component without variance one unit to both sides."""
        low, high = self.range_
        flat = high <= low
        return low - flat, high + flat

    @property
    def _n_features_out(self) -> int:
        """Number of columns of :meth:`transform`, for scikit-learn."""
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of an estimator; only scikit-learn calls this."""
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=["float64", "float32"]),
        )

    def check_parameters(self) -> None:
        """Raise UsageError if a parameter is out of its range."""
        count, foreground = self.n_components, self.foreground
        if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
            raise UsageError(f"n_components must be a whole number of at least 1, got {count!r}")
        number = isinstance(foreground, numbers.Real) and not isinstance(foreground, bool)
        if foreground not in (None, "auto") and not (number and np.isfinite(foreground)):
            raise UsageError(f"foreground must be None, 'auto' or a number, got {foreground!r}")

    def _check_size(self, found: Moments, what: str) -> None:
        if found.n < max(2, self.n_components):
            raise UsageError(
                f"{self.n_components} components need at least {max(2, self.n_components)} {what}, "
                f"got n_samples = {found.n}; give more photographs, or fewer components"
            )
        if found.mean.size < self.n_components:
            raise UsageError(
                f"n_components must be at most {found.mean.size}, the length of a row, got {self.n_components}"
            )

    def _check_fitted(self) -> None:
        if not hasattr(self, "components_"):
            raise not_fitted(self)

"""Fit the basis of the colors to the features of many photographs, read from a store."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vitnp.errors import UsageError
from vitnp.features.pca import PatchPCA
from vitnp.features.pictures import comparable
from vitnp.features.shared import StoredKeys
from vitnp.features.store import FeatureStore


def fit_basis(
    fingerprints: Iterable[str],
    store: FeatureStore,
    *,
    foreground: str | float | None = None,
    n_threads: int | None = None,
) -> PatchPCA:
    """Fit one basis to the patches of all photographs together, whose features are in a store.

    They are read once for mean and covariance and once for percentiles, in the order of the fingerprints: the basis
    depends on the set of photographs only, to the bit, not on their order, the threads or the size of batches.

    Parameters
    ----------
    fingerprints : iterable of str
        Names of the photographs in the store, in any order.
    store : FeatureStore
    foreground : None, "auto" or float
        See :class:`vitnp.features.pca.PatchPCA`. The side of the first component with more CLS attention is the
        foreground.
    n_threads : int, optional
        As in :func:`vitnp.kernels.threads.pool.resolve_n_threads`; the result does not depend on it.

    Returns
    -------
    PatchPCA
        It remembers what the features depend on.

    Raises
    ------
    UsageError
        If there are none, or all together have fewer patches than components.

    Examples
    --------
    >>> store = FeatureStore("cache", FeatureSpec.of(vit, regions=False))              # doctest: +SKIP
    >>> hashes = extract_to_store(["a.jpg", "b.jpg"], vit, store).hashes               # doctest: +SKIP
    >>> fit_basis(hashes, store).save("colors.safetensors")                            # doctest: +SKIP
    """
    fingerprints = sorted(fingerprints)
    if not fingerprints:
        raise UsageError("there are no photographs; give some")
    attention = None
    if foreground is not None:
        attention = np.concatenate([store.entry(name).attention for name in fingerprints])
    pca = PatchPCA(foreground=foreground, n_jobs=n_threads).fit(StoredKeys(store, fingerprints), attention=attention)
    pca.features_ = comparable(store.spec)
    return pca

"""Fit the basis of the colors to the features of many photographs, read from a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.features.pca import PatchPCA
from vitnp.features.pictures import comparable
from vitnp.features.shared import StoredKeys
from vitnp.features.store import FeatureStore
from vitnp.features.stream import extract_to_store
from vitnp.io.decode import MAX_PIXELS
from vitnp.io.source import Source
from vitnp.vit.model import ViT


def fit_basis(
    photographs: Sequence[Source],
    vit: ViT,
    store: FeatureStore,
    *,
    foreground: str | float | None = None,
    n_threads: int | None = None,
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], object] | None = None,
    failures: dict[int, ImageError] | None = None,
) -> PatchPCA:
    """Fit one basis to the patches of all photographs together.

    Features that the store lacks are extracted first. Then they are read once for mean and covariance and once for
    percentiles, in the order of the photographs' fingerprints: the basis depends on the set of photographs only, to the
    bit, not on their order, the number of threads or the size of batches.

    Parameters
    ----------
    photographs : sequence of Photograph, path, PIL image or array
        Those that cannot be read are left out.
    vit : ViT
    store : FeatureStore
        Store whose spec was made from this network.
    foreground : None, "auto" or float
        See :class:`vitnp.features.pca.PatchPCA`. The side of the first component with more CLS attention is the
        foreground.
    n_threads, batch, max_pixels, progress
        As for :func:`vitnp.features.stream.extract_to_store`.
    failures : dict, optional
        Filled with the errors of photographs that cannot be read, by position.

    Returns
    -------
    PatchPCA
        It remembers what the features depend on.

    Raises
    ------
    ImageError
        If none of the photographs can be read: the first error.
    OutputError
        If the store cannot be written.
    UsageError
        If all photographs together have fewer patches than components.

    Examples
    --------
    >>> store = FeatureStore("cache", FeatureSpec.of(vit, regions=False))     # doctest: +SKIP
    >>> fit_basis(["a.jpg", "b.jpg"], vit, store).save("colors.safetensors")  # doctest: +SKIP
    """
    extraction = extract_to_store(
        photographs, vit, store, n_threads=n_threads, batch=batch, max_pixels=max_pixels, progress=progress
    )
    if failures is not None:
        failures |= extraction.failures
    fingerprints = {name for name in extraction.hashes if name is not None}
    if not fingerprints and extraction.failures:
        raise next(iter(extraction.failures.values()))
    return fit_stored_basis(fingerprints, store, foreground=foreground, n_threads=n_threads)


def fit_stored_basis(
    fingerprints: Iterable[str],
    store: FeatureStore,
    *,
    foreground: str | float | None = None,
    n_threads: int | None = None,
) -> PatchPCA:
    """Fit one basis to the patches of photographs whose features are in a store.

    Parameters
    ----------
    fingerprints : iterable of str
        Of the photographs, in any order.
    store, foreground, n_threads
        As for :func:`fit_basis`.

    Returns
    -------
    PatchPCA

    Raises
    ------
    UsageError
        If there are none, or all together have fewer patches than components.
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

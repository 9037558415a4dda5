"""Features of regions in one call: one row for each region of each photograph, from which a notebook begins."""

from __future__ import annotations

import os
from typing import Any

from vitnp.errors import ImageError
from vitnp.export.region_rows import RegionFeatures
from vitnp.export.region_table import RegionTable
from vitnp.io.find import find_photographs
from vitnp.method.collection import Collection
from vitnp.method.defaults import resolve_vit
from vitnp.options import Settings
from vitnp.vit.model import ViT


def region_features(
    photographs: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    masks: str | os.PathLike[str] | None = None,
    regions: str = "image",
    collection: Collection | str | os.PathLike[str] | None = "auto",
    cache: str | os.PathLike[str] | None = None,
    n_threads: int | None = None,
    batch: int | None = None,
    failures: list[Exception] | None = None,
    **settings: Any,
) -> RegionTable:
    """Return the features of all regions of photographs as one table: masked CLS and mean key.

    Parameters
    ----------
    photographs : path, or iterable of paths
        Files or folders, see :func:`vitnp.find_photographs`.
    vit : ViT, name or path, optional
        The built-in network by default.
    masks : path, optional
        Folder of masks or label images, see :class:`vitnp.export.region_maps.MaskFolder`; by default the masks that
        `vitnp segment` makes of single photographs.
    regions : {"image", "components"}
        Whether a mask without objects and classes is one region, or each of its connected components is one.
    collection : "auto", None or "none", path or Collection
        As for :func:`vitnp.segment_image`; if it has classes, each class of a photograph is a region.
    cache : path, optional
        Folder that keeps the features for the next run.
    n_threads, batch : int, optional
        As for :func:`vitnp.features.stream.extract_to_store`.
    failures : list, optional
        List to which the errors of photographs are appended. If not given, the first one is raised.
    **settings
        See :class:`vitnp.options.Settings`; with ``instances=True`` each object is a region.

    Returns
    -------
    RegionTable
        In the order of the photographs. ``save("regions.npz")`` writes it.

    Raises
    ------
    ImageError
        If a photograph or its mask cannot be read, and `failures` is not given.
    UsageError
        If a value is not allowed.

    Examples
    --------
    >>> table = vitnp.region_features("PHOTOS/", instances=True)                 # doctest: +SKIP
    >>> vitnp.KMeans(20).fit_predict(table.cls)                                  # doctest: +SKIP
    """
    paths = [photographs] if isinstance(photographs, (str, os.PathLike)) else list(photographs)
    errors: list[Exception] = []
    unread: list[ImageError] = []
    found = find_photographs(paths, failures=unread)
    errors += unread
    describer = RegionFeatures(
        resolve_vit(vit), Settings(**settings), collection=collection, masks=masks, regions=regions, cache=cache
    )
    outcomes = list(describer.outcomes(found, n_threads=n_threads, batch=batch))
    errors += [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and failures is None:
        raise errors[0]
    if failures is not None:
        failures += errors
    return describer.table(outcomes)

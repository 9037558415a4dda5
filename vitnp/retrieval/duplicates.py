"""Find near duplicates in a folder: copies that were saved again, resized, cropped, mirrored or made brighter."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitnp import options
from vitnp.errors import UsageError
from vitnp.features.store import FeatureStore
from vitnp.io.source import Source
from vitnp.method.defaults import default_vit, resolve_vit
from vitnp.options import Settings
from vitnp.retrieval.describe import Described, Run, describe_with_index
from vitnp.retrieval.descriptor import Describer
from vitnp.retrieval.grouping import group_rows
from vitnp.retrieval.groups import Duplicate, Duplicates, sorted_groups
from vitnp.retrieval.identical import find_identical
from vitnp.retrieval.sources import as_sources, is_link, shortest_name
from vitnp.vit.model import ViT

_LOG = logging.getLogger("vitnp")

# Default cosine by what is compared: above that of nearly all pairs of different photographs, and below that of nearly
# all edited copies. Measured with the built-in network by bench/quality/copies.py; docs/similar.md explains it.
THRESHOLD = {"image": 0.95, "object": 0.95, "layout": 0.96}


def find_duplicates(
    photographs: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    threshold: float | None = None,
    exact: bool = False,
    of: str = "layout",
    index: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    short_side: int | None = None,
    stride: int | None = None,
    max_tokens: int = options.MAX_TOKENS,
    max_pixels: int = options.MAX_PIXELS,
    alpha: str = "background",
    n_threads: int | None = None,
    batch: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Duplicates:
    """Group near duplicates, and name the one of each group to keep.

    Copies that were saved again, resized, mirrored, slightly cropped, brightened or darkened are near duplicates. Every
    member of a group is as similar to the photograph to keep as the threshold says, so nothing is lost with the others
    (:mod:`vitnp.retrieval.grouping`). Links to one file are no duplicates of it.

    Parameters
    ----------
    photographs : path of a folder, or iterable of photographs
        See :func:`vitnp.io.inputs.as_photographs`.
    vit : ViT, name or path, optional
        A network, or what :func:`vitnp.load_vit` takes; the built-in network by default.
    threshold : float, optional
        Cosine from which on two photographs are near duplicates: 0.96 for layouts, 0.95 for CLS tokens, which was
        measured with the built-in network; another one may need its own.
    exact : bool
        Compare bytes alone: no photograph is decoded, and only files of one size are read.
    of : {"image", "object", "layout"}
        What is compared: CLS tokens, as for :func:`vitnp.search_similar`; or what is where in the photograph
        (:mod:`vitnp.retrieval.layout`), which tells copies from other photographs of the same things.
    index, cache, short_side, stride, max_tokens, max_pixels, alpha, n_threads, batch, progress
        As for :func:`vitnp.search_similar`.

    Returns
    -------
    Duplicates

    Raises
    ------
    ImageError, CheckpointError, OutputError, UsageError
        As for :func:`vitnp.search_similar`; UsageError also if `exact` is combined with another `of`,
        `threshold`, `index` or `cache`.

    Examples
    --------
    >>> found = vitnp.find_duplicates("photographs/")                                # doctest: +SKIP
    >>> [[near.photograph.name for near in group.members] for group in found.groups]  # doctest: +SKIP
    [['cat (1).jpg', 'cat small.jpg'], ['boat.png']]
    """
    photographs = as_sources(photographs)
    threshold = options.check("threshold", threshold)
    if exact:
        if options.check("of", of) != "layout" or threshold is not None or index is not None or cache is not None:
            raise UsageError("exact compares bytes, and takes no of, threshold, index or cache; leave them out")
        return find_identical(photographs, n_threads=n_threads, progress=progress)
    vit = resolve_vit(vit)
    if threshold is None:
        threshold = THRESHOLD[options.check("of", of)]
        if vit.sha256 != default_vit().sha256:
            _LOG.info(
                "the threshold %s was measured with the built-in network; another one may need its own", threshold
            )
    settings = Settings(short_side, stride=stride, max_tokens=max_tokens, max_pixels=max_pixels, alpha=alpha)
    describer = Describer.create(vit, of, settings)
    store = None if cache is None else FeatureStore(Path(cache), describer.spec)
    described = describe_with_index(photographs, describer, index, Run(store, n_threads, batch, max_pixels, progress))
    positions = _by_preference(photographs, described)
    rows = described.vector_rows(positions)
    leaders, cosines = group_rows(described.index.vectors, rows, threshold, n_threads=n_threads)
    groups: dict[int, list[Duplicate]] = collections.defaultdict(list)
    for place, (leader, cosine) in enumerate(zip(leaders.tolist(), cosines.tolist())):
        position, entry = positions[place], described.entry(positions[place])
        identical = entry.fingerprint == described.entry(positions[leader]).fingerprint
        groups[leader].append(Duplicate(photographs[position], position, cosine, identical, entry.size))
    return Duplicates(
        sorted_groups(groups.values()),
        described.failures,
        tuple(described.without_object),
        len(positions),
        threshold,
        describer.parameters,
    )


def _by_preference(photographs: Sequence[Source], described: Described) -> list[int]:
    """Return the positions of photographs with a vector, the best one to keep first."""

    def key(position: int) -> tuple[bool, int, int, tuple[int, bytes], int]:
        entry, source = described.entry(position), photographs[position]
        height, width = entry.size
        return is_link(source), -height * width, -entry.stamp[0], shortest_name(source), position

    return sorted(described.with_vector, key=key)

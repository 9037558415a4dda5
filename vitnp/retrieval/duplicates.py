"""Find near duplicates in a folder: copies that were saved again, resized, cropped, mirrored or made brighter."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitnp import options
from vitnp.errors import ImageError, UsageError
from vitnp.features.store import FeatureStore
from vitnp.io.source import Source, fingerprint, path_of
from vitnp.kernels.threads import pool
from vitnp.method.defaults import default_vit, resolve_vit
from vitnp.options import Settings
from vitnp.retrieval.describe import Described, Run, describe_with_index
from vitnp.retrieval.descriptor import Describer
from vitnp.retrieval.grouping import group_rows
from vitnp.retrieval.index import stamp_of
from vitnp.retrieval.sources import as_sources, entries_of, name_of, shortest_name
from vitnp.vit.model import ViT

_LOG = logging.getLogger("vitnp")

# Default cosine by what is compared: above that of nearly all pairs of different photographs, and below that of nearly
# all edited copies. Measured with the built-in network by bench/quality/copies.py; docs/similar.md explains it.
THRESHOLD = {"image": 0.95, "object": 0.95, "layout": 0.96}


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicate:
    """A photograph of a group of near duplicates.

    Attributes
    ----------
    photograph : path, PIL image or array
        As it was given; the path of a photograph in a folder.
    index : int
        Position in the list of photographs.
    similarity : float
        Cosine to the representative, 1 for the representative itself.
    identical : bool
        Whether the file has the same bytes as that of the representative.
    size : (int, int), optional
        Height and width in pixels; None if only the bytes were compared.
    """

    photograph: Source
    index: int
    similarity: float
    identical: bool
    size: tuple[int, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can represent it."""
        height, width = self.size or (None, None)
        return {
            **entries_of("photograph", self.photograph),
            "index": self.index,
            "similarity": round(self.similarity, 6),
            "identical": self.identical,
            "width": width,
            "height": height,
        }


@dataclasses.dataclass(frozen=True, eq=False)
class DuplicateGroup:
    """A representative and its near duplicates.

    Attributes
    ----------
    representative : Duplicate
        The photograph to keep: the one with the most pixels; of those the largest file; of those the shortest name.
    members : tuple of Duplicate
        The others, the most similar one first.
    """

    representative: Duplicate
    members: tuple[Duplicate, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the group as JSON can represent it: "keep" and "duplicates"."""
        return {
            "keep": self.representative.to_dict(),
            "duplicates": [member.to_dict() for member in self.members],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class Duplicates:
    """Result of :func:`find_duplicates`.

    Attributes
    ----------
    groups : tuple of DuplicateGroup
        The largest group first; of equally large ones, by the name of the representative.
    failures : dict of int to ImageError
        Photographs that could not be compared, by position.
    without_object : tuple of int
        With ``of="object"``: positions of photographs without an object, which were left out.
    n_compared : int
        Number of photographs that were compared.
    threshold : float, optional
        Cosine that members have at least; None if only the bytes were compared.
    parameters : mapping
        Everything that the vectors depend on besides the photographs.
    """

    groups: tuple[DuplicateGroup, ...]
    failures: Mapping[int, ImageError]
    without_object: tuple[int, ...]
    n_compared: int
    threshold: float | None
    parameters: Mapping[str, object]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can represent it."""
        return {
            "groups": [group.to_dict() for group in self.groups],
            "compared": self.n_compared,
            "threshold": self.threshold,
            "parameters": dict(self.parameters),
        }


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
        As for :func:`vitnp.search_similar`; UsageError also if `exact` is combined with `threshold` or `index`.

    Examples
    --------
    >>> found = vitnp.find_duplicates("photographs/")                                # doctest: +SKIP
    >>> [[near.photograph.name for near in group.members] for group in found.groups]  # doctest: +SKIP
    [['cat (1).jpg', 'cat small.jpg'], ['boat.png']]
    """
    photographs = as_sources(photographs)
    threshold = options.check("threshold", threshold)
    if exact:
        if threshold is not None or index is not None or cache is not None:
            raise UsageError("exact compares bytes, and takes no threshold, index or cache; leave them out")
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
        _sorted_groups(groups.values()),
        described.failures,
        tuple(described.without_object),
        len(positions),
        threshold,
        describer.parameters,
    )


def find_identical(
    photographs: Sequence[Source], *, n_threads: int | None = None, progress: Callable[[int], object] | None = None
) -> Duplicates:
    """Group files with the same bytes; only those of one size in bytes are read."""
    sizes = [None if path is None else _bytes_of(path) for path in map(path_of, photographs)]
    counts = collections.Counter(sizes)
    failures: dict[int, ImageError] = {}

    def read(position: int) -> str | ImageError:
        size = sizes[position]
        if size and counts[size] == 1:
            return str(position)  # no other file has its size
        try:
            return fingerprint(photographs[position])
        except ImageError as error:
            return error

    groups: dict[str, list[Duplicate]] = collections.defaultdict(list)
    threads = pool.resolve_n_threads(n_threads)
    for position, content in enumerate(pool.map_ordered(read, range(len(photographs)), threads)):
        if isinstance(content, ImageError):
            failures[position] = content
        else:
            groups[content].append(Duplicate(photographs[position], position, 1.0, True, None))
        if progress is not None:
            progress(1)
    for group in groups.values():
        group.sort(key=lambda one: (_is_link(one.photograph), shortest_name(one.photograph), one.index))
    n_compared = len(photographs) - len(failures)
    return Duplicates(_sorted_groups(groups.values()), failures, (), n_compared, None, {"of": "bytes"})


def _bytes_of(path: Path) -> int | None:
    stamp = stamp_of(path)
    return None if stamp is None else stamp[0]


def _by_preference(photographs: Sequence[Source], described: Described) -> list[int]:
    """Return the positions of photographs with a vector, the best one to keep first."""

    def key(position: int) -> tuple[bool, int, int, tuple[int, bytes], int]:
        entry, source = described.entry(position), photographs[position]
        height, width = entry.size
        return _is_link(source), -height * width, -entry.stamp[0], shortest_name(source), position

    return sorted(described.with_vector, key=key)


def _is_link(source: Source) -> bool:
    path = path_of(source)
    return path is not None and path.is_symlink()


def _sorted_groups(groups: Iterable[list[Duplicate]]) -> tuple[DuplicateGroup, ...]:
    """Return the groups of two and more, whose first is the one to keep."""
    found = []
    for representative, *others in groups:
        members = _without_links(representative, others)
        if members:
            members.sort(key=lambda one: (-one.similarity, name_of(one.photograph), one.index))
            found.append(DuplicateGroup(representative, tuple(members)))
    found.sort(key=lambda group: (-len(group.members), name_of(group.representative.photograph)))
    return tuple(found)


def _without_links(representative: Duplicate, others: Sequence[Duplicate]) -> list[Duplicate]:
    """Return the photographs that are no links to a file before them."""
    files = {_file_of(representative)}
    kept = []
    for one in others:
        file = _file_of(one)
        if file is None or file not in files:
            kept.append(one)
        files.add(file)
    return kept


def _file_of(one: Duplicate) -> tuple[int, int] | None:
    """Return device and inode of a photograph, None if it is not a file."""
    path = path_of(one.photograph)
    try:
        status = None if path is None else path.stat()
    except OSError:
        status = None
    return None if status is None else (status.st_dev, status.st_ino)

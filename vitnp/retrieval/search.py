"""Find the photographs that are most similar to others."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitnp import options
from vitnp.errors import ImageError
from vitnp.features.store import FeatureStore
from vitnp.io.source import Source, path_of
from vitnp.method.defaults import resolve_vit
from vitnp.options import Settings
from vitnp.retrieval.describe import Described, Run, describe, describe_with_index
from vitnp.retrieval.descriptor import Describer
from vitnp.retrieval.ranking import nearest_rows
from vitnp.retrieval.sources import as_sources, described_as, entries_of, is_same_file, name_of
from vitnp.vit.model import ViT


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbor:
    """A photograph that is similar to a query.

    Attributes
    ----------
    photograph : path, PIL image or array
        As it was given; the path of a photograph in a folder.
    index : int
        Position in the list of photographs.
    similarity : float
        Cosine to the query, -1 to 1.
    """

    photograph: Source
    index: int
    similarity: float


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The answer to one query.

    Attributes
    ----------
    query : path, PIL image or array
        As it was given.
    neighbors : tuple of Neighbor
        The most similar one first; of equally similar ones, by name.
    error : ImageError, optional
        Why there is no answer.
    """

    query: Source
    neighbors: tuple[Neighbor, ...] = ()
    error: ImageError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON can represent it: "query", "neighbors" (photograph, index, similarity), "error"."""
        return {
            **entries_of("query", self.query),
            **({} if self.error is None else {"error": str(self.error)}),
            "neighbors": [
                {
                    **entries_of("photograph", one.photograph),
                    "index": one.index,
                    "similarity": round(one.similarity, 6),
                }
                for one in self.neighbors
            ],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class SimilarPhotographs:
    """Result of :func:`search_similar`.

    Attributes
    ----------
    rankings : tuple of Ranking
        One per query, in their order.
    failures : dict of int to ImageError
        Photographs that could not be searched, by position.
    without_object : tuple of int
        With ``of="object"``: positions of photographs without an object, which were left out.
    n_searched : int
        Number of photographs that were searched.
    parameters : mapping
        Everything that the vectors depend on besides the photographs.
    """

    rankings: tuple[Ranking, ...]
    failures: Mapping[int, ImageError]
    without_object: tuple[int, ...]
    n_searched: int
    parameters: Mapping[str, object]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON can represent it: "queries", "searched" and "parameters"."""
        return {
            "queries": [ranking.to_dict() for ranking in self.rankings],
            "searched": self.n_searched,
            "parameters": dict(self.parameters),
        }


def search_similar(
    photographs: Any,
    queries: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    k: int = options.N_NEIGHBORS,
    of: str = "image",
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
) -> SimilarPhotographs:
    """Find the photographs that are most similar to one or several others.

    The search is exact: the cosine of the vector of each query to that of every photograph. A query that is among
    the photographs is not its own neighbor, but a copy of it is.

    Parameters
    ----------
    photographs : path of a folder, or iterable of photographs
        See :func:`vitnp.io.inputs.as_photographs`.
    queries : list of photographs, or folder
        They need not be among the photographs.
    vit : ViT, name or path, optional
        A network, or what :func:`vitnp.load_vit` takes; the built-in network by default.
    k : int
        Number of neighbors per query; all photographs if there are fewer.
    of : {"image", "object", "layout"}
        What is compared: the CLS tokens of whole photographs; or of the objects in them, computed from the patches of
        the object alone; or what is where in the photograph (:mod:`vitnp.retrieval.layout`).
    index : path, optional
        File that keeps the vectors (:mod:`vitnp.retrieval.index`), made or renewed.
    cache : path, optional
        Folder that keeps all features for other commands; a hundred times larger than an index.
    short_side, stride, max_tokens, max_pixels, alpha
        As for :func:`vitnp.segment_image`.
    n_threads : int, optional
        Number of photographs decoded, and of batches in the network, at the same time; by default one per core.
    batch : int, optional
        Maximum number of photographs per forward pass.
    progress : callable, optional
        Called with the number of photographs finished since the last call, like ``tqdm.update``.

    Returns
    -------
    SimilarPhotographs

    Raises
    ------
    ImageError
        If a folder holds no photographs. A photograph that cannot be read is listed in the result.
    CheckpointError
        If the network cannot be read.
    OutputError
        If the index or the cache cannot be written, or the file exists and is no index.
    UsageError
        If a value is not allowed, or the index was made with another network or other options.

    Examples
    --------
    >>> found = vitnp.search_similar("photographs/", ["cat.jpg"], k=2)              # doctest: +SKIP
    >>> [(near.photograph.name, near.similarity) for near in found.rankings[0].neighbors]  # doctest: +SKIP
    [('kitten.jpg', 0.83), ('dog.jpg', 0.61)]
    """
    k = options.check("k", k)
    photographs, queries = as_sources(photographs), as_sources(queries)
    settings = Settings(short_side, stride=stride, max_tokens=max_tokens, max_pixels=max_pixels, alpha=alpha)
    describer = Describer.create(resolve_vit(vit), of, settings)
    store = None if cache is None else FeatureStore(Path(cache), describer.spec)
    run = Run(store, n_threads, batch, max_pixels, progress)
    described = describe_with_index(photographs, describer, index, run)
    asked = describe(queries, describer, described.index, dataclasses.replace(run, progress=None))
    return SimilarPhotographs(
        tuple(_rank(photographs, queries, described, asked, k, n_threads)),
        described.failures,
        tuple(described.without_object),
        len(described.with_vector),
        describer.parameters,
    )


def _rank(
    photographs: Sequence[Source],
    queries: Sequence[Source],
    described: Described,
    asked: Described,
    k: int,
    n_threads: int | None,
) -> Iterator[Ranking]:
    """Yield the ranking of each query."""
    vectors = described.index.vectors
    positions = sorted(described.with_vector, key=lambda position: (name_of(photographs[position]), position))
    rows = described.vector_rows(positions)
    answered = asked.with_vector
    by_content = collections.defaultdict(list)
    contents = {asked.entry(query).fingerprint for query in answered}
    for position in positions:
        if described.entry(position).fingerprint in contents:
            by_content[described.entry(position).fingerprint].append(position)
    own = [
        {one for one in by_content[asked.entry(query).fingerprint] if is_same_file(queries[query], photographs[one])}
        for query in answered
    ]
    # Room for those that are the query itself, which are left out afterwards.
    count = k + max(map(len, own), default=0)
    wanted = vectors[asked.vector_rows(answered)]
    found = dict(zip(answered, zip(nearest_rows(wanted, vectors, rows, count, n_threads=n_threads), own)))
    for query, source in enumerate(queries):
        if query not in found:
            yield Ranking(source, error=asked.failures.get(query) or _without_object(source))
            continue
        (places, cosines), left_out = found[query]
        neighbors = (
            Neighbor(photographs[positions[place]], positions[place], float(cosine))
            for place, cosine in zip(places.tolist(), cosines)
            if positions[place] not in left_out
        )
        yield Ranking(source, tuple(itertools.islice(neighbors, k)))


def _without_object(query: Source) -> ImageError:
    return ImageError(
        f"{described_as(query)}: no object was found in it; compare whole photographs (--of image, of='image')",
        path=path_of(query),
    )

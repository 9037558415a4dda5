"""Find files with the same bytes."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path

from vitnp.errors import ImageError
from vitnp.io.source import Source, fingerprint, path_of
from vitnp.kernels.threads import pool
from vitnp.retrieval.groups import Duplicate, Duplicates, sorted_groups
from vitnp.retrieval.index import stamp_of
from vitnp.retrieval.sources import is_link, shortest_name


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
        group.sort(key=lambda one: (is_link(one.photograph), shortest_name(one.photograph), one.index))
    n_compared = len(photographs) - len(failures)
    return Duplicates(sorted_groups(groups.values()), failures, (), n_compared, None, {"of": "bytes"})


def _bytes_of(path: Path) -> int | None:
    stamp = stamp_of(path)
    return None if stamp is None else stamp[0]

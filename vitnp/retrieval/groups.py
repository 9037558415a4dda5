"""Groups of near duplicates: what :func:`vitnp.find_duplicates` returns, and in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitnp.errors import ImageError
from vitnp.io.source import Source, path_of
from vitnp.retrieval.sources import entries_of, name_of


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


def sorted_groups(groups: Iterable[list[Duplicate]]) -> tuple[DuplicateGroup, ...]:
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

"""Photographs in results: their names for sorting, and their entries in JSON."""

from __future__ import annotations

import os
from typing import Any

from vitnp.io.find import Photograph
from vitnp.io.inputs import as_photographs
from vitnp.io.path_text import path_entries
from vitnp.io.source import Source, path_of


def as_sources(values: Any) -> list[Source]:
    """Return a list of photographs, by their paths where they are files; see `vitnp.io.inputs.as_photographs`."""
    return [value.path if isinstance(value, Photograph) else value for value in as_photographs(values)]


def name_of(source: Source) -> bytes:
    """Return the path of a photograph for sorting, nothing for one in memory.

    Examples
    --------
    >>> name_of("a/cat.jpg")
    b'a/cat.jpg'
    """
    path = path_of(source)
    return b"" if path is None else os.fsencode(path)


def shortest_name(source: Source) -> tuple[int, bytes]:
    """Return a key for sorting by which "cat.jpg" comes before its copies, such as "cat (1).jpg"."""
    name = name_of(source)
    return len(os.path.basename(name)), name


def described_as(source: Source) -> str:
    """Return a photograph in words, for messages."""
    path = path_of(source)
    return "the photograph in memory" if path is None else str(path)


def entries_of(key: str, source: Source) -> dict[str, str | None]:
    """Return the entries of a JSON object for a photograph: its path, null for one in memory.

    Examples
    --------
    >>> entries_of("query", "cat.jpg")
    {'query': 'cat.jpg'}
    """
    path = path_of(source)
    return {key: None} if path is None else {**path_entries(key, path)}


def is_same_file(first: Source, second: Source) -> bool:
    """Tell whether two photographs are one object or one file, under whatever path; copies are not."""
    if first is second:
        return True
    paths = path_of(first), path_of(second)
    if paths[0] is None or paths[1] is None:
        return False
    return os.path.realpath(paths[0]) == os.path.realpath(paths[1])


def is_link(source: Source) -> bool:
    """Tell whether a photograph is a symbolic link."""
    path = path_of(source)
    return path is not None and path.is_symlink()

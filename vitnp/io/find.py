"""Find photographs in files and folders."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitnp.errors import ImageError
from vitnp.io.headers import FORMATS, unopened
from vitnp.io.stamp import is_own_output

# fmt: off
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".heic", ".heif", ".hif", ".avif",
})
# fmt: on


@dataclasses.dataclass(frozen=True)
class Photograph:
    """Path of a photograph.

    Attributes
    ----------
    path : Path
        Path of the file.
    relative : Path
        Path below the folder in which it was found; see :func:`find_photographs`.
    """

    path: Path
    relative: Path


def find_photographs(
    paths: Iterable[str | os.PathLike[str]], *, failures: list[ImageError] | None = None
) -> list[Photograph]:
    """List the photographs in files and folders.

    A file is accepted whatever its extension. Folders are searched with their subfolders, sorted by name: files with a
    known extension are accepted, hidden files (a leading dot) and images that vitnp itself wrote are skipped, symbolic
    links are followed, and each folder is visited once. A file given twice is listed once.

    Parameters
    ----------
    paths : iterable of paths
    failures : list of ImageError, optional
        List to which one error is appended for each path without a photograph: a missing file, a file that vitnp wrote,
        a folder that cannot be listed or contains no photograph. If not given, the first such error is raised.

    Returns
    -------
    list of Photograph
        `relative` is the path below the given folder, preceded by the name of the folder if several folders are given;
        for a file it is the file name.

    Raises
    ------
    ImageError
        If a path has no photograph and `failures` is not given.
    """
    given = [Path(path) for path in paths]
    with_folder_name = sum(os.path.isdir(path) for path in given) > 1
    found: dict[str, Photograph] = {}
    visited: set[tuple[int, int]] = set()
    for path in given:
        try:
            for photograph in _expand(path, with_folder_name, visited):
                found.setdefault(_directory_entry(photograph.path), photograph)
        except ImageError as error:
            if failures is None:
                raise
            failures.append(error)
    return list(found.values())


def _directory_entry(path: Path) -> str:
    """Return a unique path of a directory entry. A link to a photograph is an entry of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _expand(path: Path, with_folder_name: bool, visited: set[tuple[int, int]]) -> Iterator[Photograph]:
    """List the photographs of one path."""
    try:
        information = path.stat()
    except (OSError, ValueError) as error:
        raise unopened(path, error) from None
    if not stat.S_ISDIR(information.st_mode):
        if is_own_output(path):
            raise ImageError(f"{path}: vitnp wrote this image itself; name the photograph it was made from")
        yield Photograph(path, Path(path.name))
        return
    visited_before = (information.st_dev, information.st_ino) in visited
    prefix = Path(os.path.basename(os.path.abspath(path))) if with_folder_name else Path()
    empty = True
    for file in _walk(path, visited):
        empty = False
        yield Photograph(file, prefix / file.relative_to(path))
    if empty and not visited_before:
        raise ImageError(f"{path}: this folder holds no photographs ({FORMATS}); name another one")


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """List the photographs of a folder and its subfolders, depth first, in the order of their names."""
    stack = [folder]
    while stack:
        entry = stack.pop()
        try:
            if not os.path.isdir(entry):
                if entry.suffix.lower() in EXTENSIONS and os.path.isfile(entry) and not is_own_output(entry):
                    yield entry
                continue
            information = entry.stat()
            identity = information.st_dev, information.st_ino
            if identity not in visited:
                visited.add(identity)
                names = sorted((name for name in os.listdir(entry) if not name.startswith(".")), reverse=True)
                stack.extend(entry / name for name in names)
        except OSError as error:
            raise unopened(entry, error) from None

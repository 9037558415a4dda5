"""Find photographs in files and folders."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitnp.errors import ImageError
from vitnp.io.decode import FORMATS, unopened
from vitnp.io.stamp import is_own_output

# fmt: off
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".heic", ".heif", ".hif", ".avif",
})


# --- Finding photographs ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Photograph:
    """A photograph to be read, and its place below the folder in which it was found."""

    path: Path
    relative: Path


def find_photographs(
    paths: Iterable[str | os.PathLike[str]], *, failures: list[ImageError] | None = None
) -> list[Photograph]:
    """List the photographs that files and folders stand for.

    A file is taken whatever its extension. A folder is walked with its subfolders, each sorted by name: files with a
    known extension are taken, hidden ones (a leading dot) and pictures that vitnp itself wrote are skipped, symbolic
    links are followed, and each folder is visited once. What is named twice counts once.

    Parameters
    ----------
    paths : iterable of paths
    failures : list of ImageError, optional
        Collects one error for each entry that gives no photograph: a missing file, a file that vitnp wrote, a folder
        that can't be listed or holds no photograph. Without it the first such error is raised.

    Returns
    -------
    list of Photograph
        `relative` is the path below its folder, led by the folder's own name when several folders are given, and the
        bare file name for a file.

    Raises
    ------
    ImageError
        See `failures`.
    """
    paths = [Path(path) for path in paths]
    lead = sum(os.path.isdir(path) for path in paths) > 1
    found: dict[str, Photograph] = {}
    visited: set[tuple[int, int]] = set()
    for path in paths:
        try:
            for photograph in _expand(path, lead, visited):
                found.setdefault(_place(photograph.path), photograph)
        except ImageError as error:
            if failures is None:
                raise
            failures.append(error)
    return list(found.values())


def _place(path: Path) -> str:
    """One spelling for each directory entry; a link to a photograph is a photograph of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _expand(path: Path, lead: bool, visited: set[tuple[int, int]]) -> Iterator[Photograph]:
    try:
        information = path.stat()
    except (OSError, ValueError) as error:
        raise unopened(path, error) from None
    if not stat.S_ISDIR(information.st_mode):
        if is_own_output(path):
            raise ImageError(f"{path}: vitnp wrote this picture itself; name the photograph it was made from")
        yield Photograph(path, Path(path.name))
        return
    again = (information.st_dev, information.st_ino) in visited
    prefix = Path(os.path.basename(os.path.abspath(path))) if lead else Path()
    any_found = False
    for file in _walk(path, visited):
        any_found = True
        yield Photograph(file, prefix / file.relative_to(path))
    if not any_found and not again:
        raise ImageError(f"{path}: this folder holds no photographs ({FORMATS}); name another one")


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Photographs of a folder and its subfolders, depth first, in the order of their names."""
    waiting = [folder]
    while waiting:
        entry = waiting.pop()
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
                waiting.extend(entry / name for name in names)
        except OSError as error:
            raise unopened(entry, error) from None

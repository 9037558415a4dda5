"""Find photographs in files and folders."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from vitnp.errors import ImageError
from vitnp.io.headers import FORMATS, unopened
from vitnp.io.kinds import EXTENSIONS, LEFT_OUT, missing_support
from vitnp.io.stamp import is_own_output

# Hidden file in a folder that vitnp made of photographs: an export, or the previews of a gallery. Folders are searched
# without those.
FOLDER_MARKER = ".vitnp-export"


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
    paths: Iterable[str | os.PathLike[str]],
    *,
    failures: list[ImageError] | None = None,
    left_out: Counter[str] | None = None,
) -> list[Photograph]:
    """List the photographs in files and folders.

    A file is accepted whatever its extension. Folders are searched with their subfolders, sorted by name: files with a
    known extension are accepted; hidden files (a leading dot), images that vitnp itself wrote, and folders that it made
    of photographs are skipped; symbolic links are followed, and each folder is visited once. A file given twice is
    listed once.

    Parameters
    ----------
    paths : iterable of paths
    failures : list of ImageError, optional
        List to which one error is appended for each path without a photograph (a missing file, a file that vitnp wrote,
        a folder that holds none), for each subfolder or photograph in a folder that cannot be reached, and for each
        format in a folder that needs a package which is not installed. If not given, the first such error is raised.
    left_out : Counter, optional
        Counter to which the files in folders are added that are pictures or videos of other kinds, by
        :data:`vitnp.io.kinds.LEFT_OUT`.

    Returns
    -------
    list of Photograph
        `relative` is the path below the given folder, preceded by the name of the folder if several folders are given;
        for a file it is the file name.

    Raises
    ------
    ImageError
        For the first error, if `failures` is not given.
    """
    paths = list(paths)
    for path in paths:
        if is_url(path):
            error = url_error(path)
            if failures is None:
                raise error
            failures.append(error)
    given = [Path(path) for path in paths if not is_url(path)]
    with_folder_name = sum(os.path.isdir(path) for path in given) > 1
    found: dict[str, Photograph] = {}
    visited: set[tuple[int, int]] = set()
    for path in given:
        for item in _expand(path, with_folder_name, visited, Counter() if left_out is None else left_out):
            if isinstance(item, Photograph):
                found.setdefault(_directory_entry(item.path), item)
            elif failures is None:
                raise item
            else:
                failures.append(item)
    return list(found.values())


def is_url(path: object) -> bool:
    """Tell whether a path is the address of a web page: ``https://...``.

    Examples
    --------
    >>> is_url("https://example.org/a.jpg"), is_url("C:/a.jpg")
    (True, False)
    """
    return isinstance(path, str) and re.match(r"(https?|ftp|s3|gs)://", path, re.IGNORECASE) is not None


def url_error(url: object) -> ImageError:
    """Return the error for an address where a file is expected."""
    message = f"{url}: vitnp reads files, and fetches nothing; `curl -LO '{url}'` brings it here"
    return ImageError(message, path=str(url))


def _directory_entry(path: Path) -> str:
    """Return a unique path of a directory entry. A link to a photograph is an entry of its own."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _expand(
    path: Path, with_folder_name: bool, visited: set[tuple[int, int]], left_out: Counter[str]
) -> Iterator[Photograph | ImageError]:
    """List the photographs of one path, and what cannot be reached there."""
    try:
        information = path.stat()
    except (OSError, ValueError) as error:
        yield unopened(path, error)
        return
    if not stat.S_ISDIR(information.st_mode):
        if is_own_output(path):
            yield ImageError(f"{path}: vitnp wrote this image itself; name the photograph it was made from", path=path)
        else:
            yield Photograph(path, Path(path.name))
        return
    empty = (information.st_dev, information.st_ino) not in visited
    prefix = Path(os.path.basename(os.path.abspath(path))) if with_folder_name else Path()
    here: Counter[str] = Counter()
    unsupported: dict[tuple[str, str], list[Path]] = {}
    for item in _walk(path, visited):
        if isinstance(item, ImageError):
            empty = False
            yield item
        elif item.suffix.lower() in LEFT_OUT:
            here[LEFT_OUT[item.suffix.lower()]] += 1
        elif missing := missing_support(item):
            unsupported.setdefault(missing, []).append(item)
        else:
            empty = False
            yield Photograph(item, prefix / item.relative_to(path))
    left_out.update(here)
    for (file_format, advice), files in unsupported.items():
        empty = False
        yield ImageError(
            f"{path}: {len(files)} {file_format} left out, such as {files[0]}, for lack of a package; {advice}",
            path=path,
        )
    if empty:
        others = f" but {describe(here)}" if here else ""
        message = f"{path}: this folder holds no photographs ({FORMATS}){others}; name another one"
        yield ImageError(message, path=path)


def describe(left_out: Counter[str]) -> str:
    """Return counts of files by kind in words, the most frequent first.

    Examples
    --------
    >>> describe(Counter({"PDF": 1, "camera raw": 12}))
    '12 camera raw, 1 PDF'
    """
    return ", ".join(f"{count:,} {kind}" for kind, count in left_out.most_common())


def _walk(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path | ImageError]:
    """List the pictures of a folder and its subfolders, depth first, in the order of their names.

    What cannot be reached is an error in their place, and the walk goes on. The photographs of an export are those of
    another folder, so that it is searched only if it is the folder named.
    """
    stack = [folder]
    while stack:
        entry = stack.pop()
        try:
            information = entry.stat()
            if stat.S_ISDIR(information.st_mode):
                identity = information.st_dev, information.st_ino
                if identity not in visited:
                    visited.add(identity)
                    names = os.listdir(entry)
                    if entry == folder or FOLDER_MARKER not in names:
                        shown = sorted((name for name in names if not name.startswith(".")), reverse=True)
                        stack.extend(entry / name for name in shown)
            elif stat.S_ISREG(information.st_mode) and _is_picture(entry):
                yield entry
        except OSError as error:
            if failure := _unreached(entry, error):
                yield failure


def _is_picture(path: Path) -> bool:
    """Tell whether a file is a photograph or a picture of another kind by its extension, and not one of vitnp's own."""
    extension = path.suffix.lower()
    return extension in LEFT_OUT or (extension in EXTENSIONS and not is_own_output(path))


def _unreached(path: Path, error: OSError) -> ImageError | None:
    """Return the error for an entry of a folder that cannot be reached; None if no photograph can be meant.

    A link that leads nowhere or in circles is meant for a photograph if its extension says so, and an entry that has
    just been removed is not.
    """
    if error.errno not in (errno.ENOENT, errno.ELOOP):
        return unopened(path, error)
    if path.suffix.lower() in EXTENSIONS and path.is_symlink():
        return ImageError(f"{path}: this link leads to no file; mend or remove it", path=path)
    return None

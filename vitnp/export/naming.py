"""Choose the names of output files."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vitnp.io.find import Photograph
from vitnp.outputs import WRITERS

# Names of devices, which Windows does not allow for files, whatever their extension.
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9\u00b9\u00b2\u00b3]) *(\.|$)", re.IGNORECASE)

# What names of outputs may end in.
SUFFIXES = tuple({writer.ending(georeferenced) for writer in WRITERS.values() for georeferenced in (False, True)})

# Hexadecimal digits of the hash in a name.
_HASH_DIGITS = 8


def output_stems(
    photographs: Sequence[Photograph],
    out_dir: str | os.PathLike[str] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
) -> list[Path]:
    """Choose the stem of each photograph's outputs: what their names begin with.

    The stem is the photograph's name without its extension, in the photograph's folder or, with `out_dir`, at the same
    relative path below `out_dir`. All output names differ, even on file systems that ignore case, Unicode forms or dots
    and spaces at the end, and none is that of an input or of a device of Windows. Where two would be equal (``a.jpg``
    and ``a.png``), or an output would have the name of an input (``a.jpg`` and ``a_mask.png``), the stem keeps the
    extension (``a.jpg_mask.png``). If that is not enough, because files of one name were given from several folders, it
    goes into a folder with the name of its own (``2023/a.jpg_mask.png``). Where names still are equal, as those of
    ``a.jpg`` and ``A.jpg``, a hash of the exact name is appended (``a.jpg-64f84271_mask.png``). It depends on that
    photograph only, so that the names stay the same when others come or go.

    Parameters
    ----------
    photographs : sequence of Photograph
    out_dir : path, optional
        Folder of the outputs; it is not created here.
    suffixes : sequence of str
        What the names of outputs may end in; by default those of `vitnp segment`.

    Returns
    -------
    list of Path
        In the order of `photographs`; the suffixes are in :data:`vitnp.outputs.WRITERS`.

    Examples
    --------
    >>> from vitnp.io.find import Photograph
    >>> names = ["a.jpg", "a.png", "b.jpg"]
    >>> [stem.as_posix() for stem in output_stems([Photograph(Path(name), Path(name)) for name in names], "out")]
    ['out/a.jpg', 'out/a.png', 'out/b']
    """
    real = functools.lru_cache(maxsize=1 << 16)(os.path.realpath)
    inputs = {_fold(photograph.path, real) for photograph in photographs}
    choices = [_choices(index, photograph, out_dir) for index, photograph in enumerate(photographs)]
    stems = [next(choice) for choice in choices]
    folded = [_fold(stem, real) for stem in stems]
    steps = [0] * len(stems)
    while True:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(folded):
            groups[name].append(index)
        moving: list[int] = []
        for name, group in groups.items():
            if len(group) > 1 or any(name + suffix in inputs for suffix in suffixes):
                # Change those that have changed least so far.
                least = min(steps[index] for index in group)
                moving += [index for index in group if steps[index] == least]
        if not moving:
            return stems
        for index in moving:
            stems[index] = next(choices[index])
            folded[index] = _fold(stems[index], real)
            steps[index] += 1


def _fold(path: Path, real: Callable[[Path], str]) -> str:
    """Return a form that is equal for paths that some file system treats as the same file.

    It is the canonical caseless form of Unicode (The Unicode Standard, 3.13.5), without dots and spaces at the end of
    a folder's name, which Windows ignores.
    """
    folder = os.sep.join(part.rstrip(". ") for part in real(path.parent).split(os.sep))
    decomposed = unicodedata.normalize("NFD", os.path.join(folder, path.name))
    return unicodedata.normalize("NFD", decomposed.casefold())


def _choices(index: int, photograph: Photograph, out_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield stems for a photograph, best first; from some point on, without end, stems with a hash."""
    path, relative = photograph.path, photograph.relative
    base = path.parent if out_dir is None else Path(out_dir, relative.parent)
    device = "_" if _RESERVED.match(path.name) else ""
    yield base / f"{device}{path.stem}"
    yield base / f"{device}{path.name}"
    absolute = os.path.abspath(path)
    if out_dir is not None and relative.parent == Path():
        yield base / os.path.basename(os.path.dirname(absolute)) / f"{device}{path.name}"
    # The name itself tells apart what differs by case, wherever the collection is. Files of several folders may have
    # their names in common, and even their paths below the given folders. Only for a photograph that is given twice, or
    # if two hashes are equal, does the name depend on its place in the list.
    further = (f"{absolute}\0{index}\0{attempt}" for attempt in itertools.count())
    for exact in itertools.chain([path.name, relative.as_posix(), absolute], further):
        digest = hashlib.blake2b(os.fsencode(exact)).hexdigest()
        yield base / f"{device}{path.name}-{digest[:_HASH_DIGITS]}"

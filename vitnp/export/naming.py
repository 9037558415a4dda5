"""Choose the names of output files."""

from __future__ import annotations

import itertools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitnp.io.find import Photograph
from vitnp.outputs import WRITERS


def output_stems(photographs: Sequence[Photograph], out_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Choose what the names of each photograph's outputs begin with.

    That is the photograph's name without its extension, beside it, or at its place below `out_dir`. Names differ even
    on file systems that ignore case. Where two would be the same (``a.jpg`` and ``a.png``), or an
    output would have the name of a photograph that is itself an input (``a.jpg`` and ``a_mask.png``), the extension
    stays (``a.jpg_mask.png``); where that is not enough, since files of one name come from several folders, these
    folders' names lead (``2023/a.jpg_mask.png``); and at last a number follows.

    Parameters
    ----------
    photographs : sequence of Photograph
    out_dir : path, optional
        Folder of the outputs; it is not created here.

    Returns
    -------
    list of Path
        In the order of `photographs`; what follows is in :data:`vitnp.outputs.WRITERS`.

    Examples
    --------
    >>> from vitnp.io.find import Photograph
    >>> names = ["a.jpg", "a.png", "b.jpg"]
    >>> [stem.as_posix() for stem in output_stems([Photograph(Path(name), Path(name)) for name in names], "out")]
    ['out/a.jpg', 'out/a.png', 'out/b']
    """
    inputs = {_fold(photograph.path) for photograph in photographs}
    choices = [_choices(index, photograph, out_dir) for index, photograph in enumerate(photographs)]
    stems = [next(choice) for choice in choices]
    folded = [_fold(stem) for stem in stems]
    steps = [0] * len(stems)
    while True:
        groups = defaultdict(list)
        for index, name in enumerate(folded):
            groups[name].append(index)
        moving = []
        for name, group in groups.items():
            if len(group) > 1 or any(name + writer.suffix in inputs for writer in WRITERS.values()):
                # Those that have changed least so far change next.
                least = min(steps[index] for index in group)
                moving += [index for index in group if steps[index] == least]
        if not moving:
            return stems
        for index in moving:
            stems[index] = next(choices[index])
            folded[index] = _fold(stems[index])
            steps[index] += 1


def _fold(path: Path) -> str:
    """Return a spelling that is equal for paths that some file system would take for one file."""
    full = os.path.join(os.path.realpath(path.parent), path.name)
    return unicodedata.normalize("NFC", full.casefold())


def _choices(index: int, photograph: Photograph, out_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield stems for a photograph, the best one first; the last ones, without end, hold its number."""
    relative = photograph.relative
    base = photograph.path.parent if out_dir is None else Path(out_dir, relative.parent)
    yield base / photograph.path.stem
    yield base / photograph.path.name
    if out_dir is not None:
        folders = Path(os.path.abspath(photograph.path)).parts[1:-1]
        for count in range(len(relative.parts), len(folders) + 1):
            base = Path(out_dir, *folders[-count:])
            yield base / photograph.path.name
    for repeat in itertools.count(1):
        yield base / f"{photograph.path.name}{f'-{index + 1}' * repeat}"

"""Tables that merge classes into coarser ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from vitnp.errors import UsageError
from vitnp.evaluate.data.files import read_lines, shorten_list
from vitnp.evaluate.metrics.semantic import IGNORE

BACKGROUND = "background"

# Second columns with a fixed meaning.
_FIXED_TARGETS = {"0": 0, BACKGROUND: 0, str(IGNORE): IGNORE, "ignore": IGNORE}


def read_class_table(path: str | os.PathLike[str], classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a table of coarser classes.

    Each line has two columns: a class, by name or number, and the coarser class that it becomes part of. They are
    separated by a tab or a comma, or else by spaces (the second column is then the last word). ``#`` starts a comment.
    In the second column ``0`` or ``background`` means the background, and ``255`` or ``ignore`` ignored pixels. All
    other coarser classes are given either by name, and are then numbered from 1 in order of appearance, or by number.
    Background and ignored pixels need no line, and then stay what they are; every other class needs one.

    Parameters
    ----------
    path : path
    classes : sequence of str
        Names of the data set's classes, background first.

    Returns
    -------
    lookup : (256,) uint8
        New label of each old label.
    classes : tuple of str
        Names of the coarser classes, background first. A class given by number is named after its only source, or if
        there are several, by its number.

    Raises
    ------
    UsageError
        When the file can't be read, a line doesn't have two columns, or a class is missing, unknown or given twice.
    """
    targets = _read_targets(path, classes)
    names = list(dict.fromkeys(target for target in targets.values() if target not in _FIXED_TARGETS))
    labels = _FIXED_TARGETS | _number_targets(path, names)
    lookup = np.full(256, IGNORE, np.uint8)
    for source, target in targets.items():
        lookup[source] = labels[target]

    merged = [BACKGROUND, *map(str, range(1, 1 + max((labels[name] for name in names), default=0)))]
    for name in names:
        sources = [source for source, target in targets.items() if target == name]
        if not name.isdecimal():
            merged[labels[name]] = name
        elif len(sources) == 1 and sources[0] < len(classes):
            merged[labels[name]] = classes[sources[0]]
    return lookup, tuple(merged)


def _read_targets(path: str | os.PathLike[str], classes: Sequence[str]) -> dict[int, str]:
    """Return the second column by the label that the first column stands for; all labels of `classes` are there."""
    labels = {name: label for label, name in enumerate(classes)}
    labels |= {str(label): label for label in range(len(classes))} | {"ignore": IGNORE, str(IGNORE): IGNORE}
    targets: dict[int, str] = {}
    for number, text in read_lines(path):
        source, target = _split_columns(path, number, text)
        if source not in labels:
            _fail(path, number, f"there is no class {source!r}; the set has {shorten_list(classes, 4)}")
        if labels[source] in targets:
            _fail(path, number, f"{source} has a line already; keep one of them")
        targets[labels[source]] = target
    missing = [name for label, name in enumerate(classes) if label and label not in targets]
    if missing:
        raise UsageError(
            f"{path}: every class needs a line, but {shorten_list(missing, 4)} have none; add '{missing[0]}, ignore' "
            "or another coarser class"
        )
    targets.setdefault(0, BACKGROUND)
    targets.setdefault(IGNORE, "ignore")
    return targets


def _number_targets(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, int]:
    """Return the label of each coarser class: its number if all are numbers, else its rank."""
    numbers = [name for name in names if name.isdecimal()]
    if numbers and len(numbers) < len(names):
        name = next(name for name in names if not name.isdecimal())
        raise UsageError(f"{path}: the second column mixes numbers ({numbers[0]}) and names ({name}); use one kind")
    labels = {name: int(name) if numbers else rank for rank, name in enumerate(names, 1)}
    too_high = [name for name in names if labels[name] >= IGNORE]
    if too_high:
        raise UsageError(f"{path}: classes must be numbered 1 to {IGNORE - 1}, got {too_high[0]}; merge more classes")
    return labels


def _split_columns(path: str | os.PathLike[str], number: int, text: str) -> tuple[str, str]:
    for separator in ("\t", ","):
        if separator in text:
            columns = [column.strip() for column in text.split(separator) if column.strip()]
            break
    else:
        columns = text.rsplit(None, 1)
    if len(columns) != 2:
        _fail(path, number, f"{text!r} doesn't have two columns; write 'class, coarser class'")
    return columns[0], columns[1]


def _fail(path: str | os.PathLike[str], number: int, reason: str) -> NoReturn:
    raise UsageError(f"{path}, line {number}: {reason}")

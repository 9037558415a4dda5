"""Decisions of a person about what a run found: ``decisions.json``, which the page ``gallery.html`` writes.

An object with these entries:

``vitnp``, ``version``
    "decisions", 1.
``run``
    Key of the run that they are about, see :class:`RunKey`; may be left out.
``saved``
    Time of the download, for the page.
``classes``
    One object for each class that was named or merged: ``{"id": 1, "name": "cat"}``, ``{"id": 3, "into": 1}``.
``photographs``
    One object for each photograph that was looked at: its number from 1 in ``results.jsonl`` and its name, ``{"id": 7,
    "name": "a.jpg", "decision": "wrong"}``. The decision is one of :data:`DECISIONS`; with "class", ``class`` is the
    class of all of its regions. The number may be left out where the name is unique.

Classes and photographs are always those of the run itself, not of what earlier decisions made of them. A file therefore
says everything that is to be different from the run, and applying it twice changes nothing more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitnp.errors import UsageError
from vitnp.export.photograph_record import PhotographRecord
from vitnp.io.path_text import printable, read_path
from vitnp.options import enumerate_words

DECISIONS = ("checked", "wrong", "empty", "class")
_VERSION = 1

# What a name cannot hold, because formats have one name a line: control characters, line separators, lone surrogates.
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class RunKey:
    """Key of a run, from all that is known of its photographs but their pixels.

    Examples
    --------
    >>> key = RunKey()
    >>> key.add(PhotographRecord("a.jpg", 0.5, (), lambda: None, lambda: None))
    >>> key.hexdigest()
    'd92741f71b1835692647c4ae5279c6d6'
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph."""
        regions = [[region.label, float(region.score)] for region in photograph.regions]
        entry = [photograph.name.encode("utf-8", "surrogatepass").hex(), float(photograph.confidence), regions]
        self._hash.update(json.dumps(entry).encode())

    def hexdigest(self) -> str:
        """Return the key of the photographs added so far."""
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Decisions about a run, checked.

    Attributes
    ----------
    names : mapping of int to str
        New names of classes.
    into : mapping of int to int
        For each class that was merged, the class that it became.
    photographs : mapping of int to (str or int)
        For photographs by number, from 1: "checked", "wrong" (its mask is wrong), "empty" (it shows no object), or the
        class of its regions.
    record : mapping
        Content of the file.

    Examples
    --------
    >>> decisions = Decisions({1: "cat"}, {3: 1}, {})
    >>> decisions.classes(["class 1", "class 2", "class 3", "class 4"])
    (['cat', 'class 2', 'class 4'], {1: 1, 2: 2, 3: 1, 4: 3})
    """

    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    into: Mapping[int, int] = dataclasses.field(default_factory=dict)
    photographs: Mapping[int, str | int] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], names: Sequence[str], photographs: Iterable[PhotographRecord]
    ) -> Decisions:
        """Read ``decisions.json`` and check it against the run.

        Parameters
        ----------
        path : path
        names : sequence of str
            Names of the classes of the run.
        photographs : iterable of PhotographRecord
            Photographs of the run.

        Raises
        ------
        UsageError
            If the file cannot be read, is about another run, or names a class, a photograph or a decision that does not
            exist.
        """
        try:
            record = json.loads(Path(path).read_bytes())
        except OSError as error:
            raise UsageError(
                f"cannot read {path}: {error.strerror}; give the file that gallery.html has saved"
            ) from None
        except (ValueError, RecursionError):
            raise UsageError(f"{path}: this is no JSON; give the file that gallery.html has saved") from None
        try:
            return cls.check(record, names, photographs)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    @classmethod
    def check(cls, record: Any, names: Sequence[str], photographs: Iterable[PhotographRecord]) -> Decisions:
        """Return the decisions of a record if they fit the run; see :meth:`read`."""
        if not isinstance(record, dict) or record.get("vitnp") != "decisions":
            raise UsageError("this holds no decisions; give the file that gallery.html has saved")
        if record.get("version") != _VERSION:
            raise UsageError(f"version {record.get('version')!r}, where this vitnp reads version {_VERSION}")
        key, exact_names = RunKey(), []
        for photograph in photographs:
            key.add(photograph)
            exact_names.append(photograph.name)
        if record.get("run") not in (None, key.hexdigest()):
            raise UsageError(
                "these decisions are about another run; open the gallery.html of this one and decide there"
            )
        new_names, into = _classes(_objects(record, "classes"), len(names))
        decisions = cls(new_names, into, _photographs(_objects(record, "photographs"), exact_names, len(names)), record)
        remaining, _ = decisions.classes(names)
        for name in remaining:
            if remaining.count(name) > 1:
                raise UsageError(f'two classes are named "{printable(name)}"; merge them, or name them differently')
        return decisions

    def __bool__(self) -> bool:
        """Tell whether anything becomes different from the run."""
        changes = any(decision != "checked" for decision in self.photographs.values())
        return bool(self.names or self.into or changes)

    def classes(self, names: Sequence[str]) -> tuple[list[str], dict[int, int]]:
        """Return the names of the classes that remain, and the new number of every class of the run.

        Classes keep their order and are numbered from 1 without gaps.
        """
        kept = [label for label in range(1, len(names) + 1) if label not in self.into]
        numbers = {label: number for number, label in enumerate(kept, 1)}
        numbers |= {label: numbers[self._root(label)] for label in self.into}
        return [self.names.get(label, names[label - 1]) for label in kept], dict(sorted(numbers.items()))

    def decide(self, number: int, photograph: PhotographRecord, numbers: Mapping[int, int]) -> PhotographRecord | None:
        """Return what a photograph is after the decisions; None if its mask is wrong.

        Parameters
        ----------
        number : int
            Of the photograph, from 1.
        photograph : PhotographRecord
            As the run found it.
        numbers : mapping of int to int
            New number of every class, see :meth:`classes`.
        """
        decision = self.photographs.get(number, "checked")
        if decision == "wrong":
            return None
        if decision == "empty":
            return dataclasses.replace(
                photograph, regions=(), load_region_map=lambda: np.zeros_like(photograph.without_arrays().region_map)
            )
        own = decision if isinstance(decision, int) else None
        regions = tuple(
            region._replace(label=numbers[region.label if own is None else own]) for region in photograph.regions
        )
        return dataclasses.replace(photograph, regions=regions)

    def renamed(self, labels: Mapping[int, str]) -> dict[str, Any]:
        """Return the record of the decisions with other names for some classes of the run."""
        names = {**self.names, **labels}
        classes = [{"id": label, "name": name} for label, name in sorted(names.items())]
        classes += [{"id": label, "into": target} for label, target in sorted(self.into.items())]
        return {**self.record, "vitnp": "decisions", "version": _VERSION, "classes": classes}

    def _root(self, label: int) -> int:
        while label in self.into:
            label = self.into[label]
        return label


def _objects(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = record.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f'"{key}" must be a list of objects')
    return entries


def _label(value: object, n_classes: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= n_classes:
        raise UsageError(f"the run has the classes 1 to {n_classes}, got {value!r}")
    return value


def _classes(entries: Iterable[Mapping[str, Any]], n_classes: int) -> tuple[dict[int, str], dict[int, int]]:
    """Return the new names, and what was merged into what."""
    names: dict[int, str] = {}
    into: dict[int, int] = {}
    for entry in entries:
        label = _label(entry.get("id"), n_classes)
        if "name" in entry:
            name = entry["name"].strip() if isinstance(entry["name"], str) else ""
            if not name or _NOT_IN_NAMES.search(name):
                raise UsageError(f"the name of class {label} must be a line of text, got {entry['name']!r}")
            names[label] = name
        if "into" in entry:
            into[label] = _label(entry["into"], n_classes)
    for label in into:
        seen = {label}
        while label in into:
            label = into[label]
            if label in seen:
                raise UsageError(f"class {label} is merged into itself; leave one of its merges out")
            seen.add(label)
    return names, into


def _photographs(entries: Iterable[Mapping[str, Any]], names: Sequence[str], n_classes: int) -> dict[int, str | int]:
    """Return the decision for each photograph that has one."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names, 1):
        numbers.setdefault(name, []).append(number)
    decisions: dict[int, str | int] = {}
    for entry in entries:
        try:
            name = read_path(entry, "name")
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"a photograph must have a name, got {entry}") from None
        found = numbers.get(name, [])
        if "id" in entry:
            found = [number for number in found if number == entry["id"]]
        if len(found) != 1:
            problem = f"{len(found)} photographs" if found else "no photograph"
            which = f" with id {entry['id']!r}" if "id" in entry else ""
            raise UsageError(f"the run has {problem} '{printable(name)}'{which}")
        decision = entry.get("decision")
        if decision not in DECISIONS:
            raise UsageError(f"{printable(name)}: a decision must be {enumerate_words(DECISIONS)}, got {decision!r}")
        decisions[found[0]] = _label(entry.get("class"), n_classes) if decision == "class" else decision
    return decisions

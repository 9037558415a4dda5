"""Compose ``run.json``: the versions, settings, times and failures of a run."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vitnp import __version__
from vitnp.io.path_text import path_entries

# Packages that take part in the computation, so that a difference between two runs can be traced to them.
_PACKAGES = ("numpy", "scipy", "numba", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of vitnp, Python and the packages that take part in the computation, where installed.

    Examples
    --------
    >>> versions()["vitnp"] == __version__
    True
    """
    found = {"vitnp": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_run_record(path: Path) -> dict[str, Any]:
    """Return the content of ``run.json``; empty if there is none or it is damaged."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return {}
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record["parameters"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def failure_records(failures: Iterable[tuple[object, BaseException | str]]) -> list[dict[str, str]]:
    """Return failures as values that JSON can represent.

    Parameters
    ----------
    failures : iterable of (photograph, error)

    Examples
    --------
    >>> failure_records([("a.jpg", "a.jpg: this file is empty")])
    [{'photograph': 'a.jpg', 'error': 'a.jpg: this file is empty'}]
    """
    return [{**path_entries("photograph", str(photograph)), "error": str(error)} for photograph, error in failures]


def run_record(
    *,
    parameters: Mapping[str, object],
    checkpoint: str,
    checkpoint_sha256: str,
    seeds: Sequence[int],
    seconds: Mapping[str, float],
    photographs: Mapping[str, int],
    failures: Iterable[tuple[object, BaseException | str]] = (),
) -> dict[str, object]:
    """Return the content of ``run.json``: everything that is needed to repeat a run, and how it went.

    Parameters
    ----------
    parameters : mapping
        All options, defaults included.
    checkpoint, checkpoint_sha256 : str
        Name of the network, and the SHA-256 of its file.
    seeds : sequence of int
    seconds : mapping of str to float
        Wall-clock time by stage.
    photographs : mapping of str to int
        Counts, such as "found", "done" and "failed".
    failures : iterable of (photograph, error)

    Returns
    -------
    dict
        For :func:`vitnp.io.write.write_json`.

    Examples
    --------
    >>> record = run_record(parameters={"size": 320}, checkpoint="auto", checkpoint_sha256="ab12", seeds=[0],
    ...                     seconds={"features": 1.23456}, photographs={"found": 2, "done": 2})
    >>> record["checkpoint"], record["seconds"]
    ({'name': 'auto', 'sha256': 'ab12'}, {'features': 1.235, 'total': 1.235})
    """
    total = sum(seconds.values())
    return {
        "versions": versions(),
        "system": {"platform": platform.platform(), "machine": platform.machine()},
        "checkpoint": {"name": checkpoint, "sha256": checkpoint_sha256},
        "seeds": list(seeds),
        "parameters": dict(parameters),
        "photographs": dict(photographs),
        "seconds": {stage: round(float(spent), 3) for stage, spent in {**seconds, "total": total}.items()},
        "failures": failure_records(failures),
    }

"""``run.json`` and ``classes.json``: what was done, with what, and what came of it. Plain data in, plain data out."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata

import numpy as np

from vitnp import __version__
from vitnp.masks.palette import voc_colors

# Whatever takes part in the numbers; a fault in the answer may be looked for here.
_PACKAGES = ("numpy", "scipy", "numba", "pillow", "safetensors")


def versions() -> dict[str, str]:
    """Versions of vitnp, Python and the packages that take part in the numbers; those that are absent are left out.

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


def failure_records(failures: Iterable[tuple[object, BaseException | str]]) -> list[dict[str, str]]:
    """Failures as plain data.

    Parameters
    ----------
    failures : iterable of (photograph, error)

    Examples
    --------
    >>> failure_records([("a.jpg", "a.jpg: this file is empty")])
    [{'photograph': 'a.jpg', 'error': 'a.jpg: this file is empty'}]
    """
    return [{"photograph": str(photograph), "error": str(error)} for photograph, error in failures]


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
    """What ``run.json`` holds: all that is needed to do a run again, and how it went.

    Parameters
    ----------
    parameters : mapping
        Every option, defaults too.
    checkpoint, checkpoint_sha256 : str
        The network's name and its file's fingerprint.
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


def class_records(
    names: Sequence[str],
    photographs: Sequence[str],
    confidence: Sequence[float],
    *,
    region_class: np.ndarray,
    region_photograph: np.ndarray,
    region_patches: np.ndarray,
    medoids: Sequence[int],
) -> list[dict[str, object]]:
    """What ``classes.json`` holds: one record a class.

    Parameters
    ----------
    names : sequence of str
        Of the classes 1, 2, ...
    photographs : sequence of str, length N
        Paths.
    confidence : sequence of float, length N
        Of each photograph.
    region_class : array, shape (R,), int
        Class of each region, from 1 on.
    region_photograph : array, shape (R,), int
        Which photograph it's in, from 0 on.
    region_patches : array, shape (R,), int
        Its size in patches.
    medoids : sequence of int, one a class
        The most typical photograph of each class, from 0 on; whatever for a class without regions.

    Returns
    -------
    list of dict
        id, name, color (``#rrggbb``, as in the label images), images (photographs with a region of the class),
        patches, medoid (path; None for a class without regions) and confidence (mean over these photographs; None
        likewise).

    Raises
    ------
    ValueError
        When lengths differ, or a class or a photograph is out of range.

    Examples
    --------
    >>> (record,) = class_records(["class 1"], ["a.jpg", "b.jpg"], [0.5, 0.75], region_class=np.array([1, 1]),
    ...                           region_photograph=np.array([0, 1]), region_patches=np.array([10, 5]), medoids=[1])
    >>> record["medoid"], record["confidence"]
    ('b.jpg', 0.625)
    """
    region_class, region_photograph = np.asarray(region_class), np.asarray(region_photograph)
    region_patches, confidence = np.asarray(region_patches), np.asarray(confidence, np.float64)
    if not len(region_class) == len(region_photograph) == len(region_patches):
        raise ValueError("each region has one class, one photograph and one number of patches")
    if len(confidence) != len(photographs) or len(medoids) != len(names):
        raise ValueError("each photograph has one confidence, and each class one medoid")
    if len(region_class) and not (region_class.min() >= 1 and region_class.max() <= len(names)):
        raise ValueError(f"a region's class is out of range; classes go from 1 to {len(names)}")
    if len(region_class) and not (region_photograph.min() >= 0 and region_photograph.max() < len(photographs)):
        raise ValueError(f"a region's photograph is out of range; there are {len(photographs)}")
    records = []
    for number, (name, color) in enumerate(zip(names, voc_colors(len(names) + 1)[1:].tolist()), 1):
        own = region_class == number
        holders = np.unique(region_photograph[own])
        records.append(
            {
                "id": number,
                "name": name,
                "color": f"#{bytes(color).hex()}",
                "images": int(holders.size),
                "patches": int(region_patches[own].sum()),
                "medoid": photographs[medoids[number - 1]] if holders.size else None,
                "confidence": round(float(confidence[holders].mean()), 6) if holders.size else None,
            }
        )
    return records

"""The arrays of a fitted collection as they are stored in its safetensors file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vitnp.method.collection_level import FittedLevel
from vitnp.method.lines import LineRule
from vitnp.method.prototypes import Prototypes
from vitnp.method.readout import Readout

# Labels are stored as uint16, 0 is the background.
_MAX_CLASSES = 65_535


def to_arrays(
    dataset: FittedLevel,
    categories: Sequence[FittedLevel],
    centers: np.ndarray,
    prototypes: Prototypes | None,
    readout: Readout | None,
    lines: LineRule | None,
) -> dict[str, np.ndarray]:
    """Return the arrays of a collection under the names that files use."""
    arrays = {"centres": centers}
    names = ["dataset", *(f"category.{index}" for index in range(len(categories)))]
    for name, level in zip(names, (dataset, *categories)):
        for index, (centroids, shares) in enumerate(zip(level.centroids, level.shares)):
            arrays[f"{name}.{index}.centroids"], arrays[f"{name}.{index}.shares"] = centroids, shares
    if prototypes is not None:
        arrays["prototypes.cls"], arrays["prototypes.classes"] = prototypes.cls, prototypes.classes
        if prototypes.mean is not None:
            arrays["prototypes.mean"] = prototypes.mean
    if readout is not None:
        arrays["readout.weights"], arrays["readout.bias"] = readout.weights, np.array([readout.bias], np.float32)
    if lines is not None:
        arrays["lines"] = np.array([lines.bright, lines.low, lines.high], np.float32)
    return arrays


def from_arrays(
    arrays: Mapping[str, np.ndarray], temperatures: Mapping[str, float]
) -> tuple[FittedLevel, tuple[FittedLevel, ...], np.ndarray, Prototypes | None, Readout | None, LineRule | None]:
    """Return what :func:`to_arrays` was given, in the same order.

    Parameters
    ----------
    arrays : mapping of str to array
    temperatures : mapping of str to float
        Temperatures of the "dataset" and the "category" levels.

    Raises
    ------
    KeyError, ValueError
        If an array is missing, or shapes or values do not fit.
    """
    centers = np.array(arrays["centres"], np.float32)
    dataset = _level(arrays, "dataset", temperatures["dataset"], centers.shape[1])
    categories = tuple(
        _level(arrays, f"category.{index}", temperatures["category"], centers.shape[1]) for index in range(len(centers))
    )
    prototypes = _prototypes(arrays, centers.shape[1]) if "prototypes.cls" in arrays else None
    readout = _readout(arrays, centers.shape[1]) if "readout.weights" in arrays else None
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("an array contains NaN or infinity")
    lines = _lines(arrays["lines"]) if "lines" in arrays else None
    return dataset, categories, centers, prototypes, readout, lines


def _level(arrays: Mapping[str, np.ndarray], name: str, temperature: float, width: int) -> FittedLevel:
    indices = range(sum(key.startswith(f"{name}.") and key.endswith(".shares") for key in arrays))
    centroids = tuple(np.array(arrays[f"{name}.{index}.centroids"], np.float32) for index in indices)
    shares = tuple(np.array(arrays[f"{name}.{index}.shares"], np.float32) for index in indices)
    if not centroids or any(one.shape != (len(share), width) for one, share in zip(centroids, shares)):
        raise ValueError(f"the shapes of the {name} level do not fit together")
    return FittedLevel(centroids, shares, float(temperature))


def _readout(arrays: Mapping[str, np.ndarray], width: int) -> Readout:
    weights, bias = (np.array(arrays[f"readout.{name}"], np.float32) for name in ("weights", "bias"))
    if weights.shape != (width,) or bias.shape != (1,):
        raise ValueError("the shapes of the readout do not fit together")
    return Readout(weights, float(bias[0]))


def _lines(array: np.ndarray) -> LineRule:
    if array.shape != (3,) or array[0] not in (0, 1) or not 0 < array[1] <= array[2]:
        raise ValueError("the thresholds of the lines do not fit together")
    return LineRule(bool(array[0]), float(array[1]), float(array[2]))


def _prototypes(arrays: Mapping[str, np.ndarray], width: int) -> Prototypes:
    cls, classes = np.array(arrays["prototypes.cls"]), np.array(arrays["prototypes.classes"], np.int64)
    if cls.shape != (len(classes), width) or not len(classes):
        raise ValueError("the shapes of the prototypes do not fit together")
    if classes.min() < 0 or classes.max() >= _MAX_CLASSES:
        raise ValueError(f"the classes of the prototypes must be from 0 to {_MAX_CLASSES - 1}")
    mean = np.array(arrays["prototypes.mean"], np.float32) if "prototypes.mean" in arrays else None
    if mean is not None and mean.shape != (width,):
        raise ValueError("the shape of the prototypes' mean does not fit")
    return Prototypes(cls, classes, mean)

"""The file of a basis of :class:`vitnp.features.pca.PatchPCA`: safetensors, a few kilobytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.errors import CheckpointError, UsageError
from vitnp.io.stamp import canonical_json

FORMAT = "vitnp patch pca 1"

Basis = TypeVar("Basis")


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], digest: str
) -> None:
    """Write a basis, in full or not at all.

    Parameters
    ----------
    path : path
    arrays : mapping of str to float64 array
    facts : mapping
        What else there is to know; JSON can represent it.
    digest : str
        Fingerprint of arrays and facts.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_safetensors(path, arrays, {"format": FORMAT, "facts": canonical_json(facts), "digest": digest})


def read(path: str | os.PathLike[str], build: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Basis]) -> Basis:
    """Read a basis that :func:`write` wrote.

    Parameters
    ----------
    path : path
    build : callable
        Makes the basis from arrays and facts. Its attribute ``digest`` must be that of the file.

    Raises
    ------
    CheckpointError
        If there is no such file, it holds no basis, or it is damaged.
    """
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no basis of colors; make one with --save-basis, or check the file name")
    try:
        # Copies, so that the file may be replaced, and removed on Windows.
        arrays = {name: np.array(array, np.float64) for name, array in arrays.items()}
        _check_shapes(arrays)
        basis = build(arrays, json.loads(metadata["facts"]))
        if basis.digest != metadata["digest"]:  # type: ignore[attr-defined]
            raise ValueError("its checksum differs")
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError, UsageError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fit the basis again with --save-basis") from None
    return basis


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the shapes fit each other and all numbers are finite."""
    count, width = arrays["components"].shape
    expected = {
        "components": (count, width),
        "mean": (width,),
        "explained_variance": (count,),
        "explained_variance_ratio": (count,),
        "range": (2, count),
    }
    if "foreground.scale" in arrays:
        expected |= {"foreground.component": (width,), "foreground.mean": (width,), "foreground.scale": (2,)}
    if {name: array.shape for name, array in arrays.items()} != expected:
        raise ValueError("its arrays have other names or shapes")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it contains NaN or infinity")

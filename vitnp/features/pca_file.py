"""The file of a basis of :class:`vitnp.features.pca.PatchPCA`: safetensors, a few kilobytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitnp.checkpoints.safetensors_io import read_safetensors, write_safetensors
from vitnp.errors import CheckpointError, UsageError
from vitnp.features.foreground_axis import ForegroundAxis
from vitnp.io.stamp import canonical_json

if TYPE_CHECKING:
    from vitnp.features.pca import PatchPCA

FORMAT = "vitnp patch pca 1"


def write(path: str | os.PathLike[str], pca: PatchPCA) -> None:
    """Write a basis, in full or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    metadata = {"format": FORMAT, "facts": canonical_json(_facts(pca)), "digest": digest(pca)}
    write_safetensors(path, _arrays(pca), metadata)


def read(path: str | os.PathLike[str], kind: type[PatchPCA]) -> PatchPCA:
    """Read a basis that :func:`write` wrote.

    Parameters
    ----------
    path : path
    kind : type
        Class of the basis.

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
        _check(arrays)
        pca = _build(kind, arrays, json.loads(metadata["facts"]))
        if digest(pca) != metadata["digest"]:
            raise ValueError("its checksum differs")
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RecursionError, UsageError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fit the basis again with --save-basis") from None
    return pca


def digest(pca: PatchPCA) -> str:
    """Return the fingerprint of everything that colors depend on: 32 hexadecimal digits."""
    found = hashlib.blake2b(canonical_json(_facts(pca)).encode(), digest_size=16)
    for name, array in sorted(_arrays(pca).items()):
        found.update(f"{name} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _arrays(pca: PatchPCA) -> dict[str, np.ndarray]:
    arrays = {
        "components": pca.components_,
        "mean": pca.mean_,
        "explained_variance": pca.explained_variance_,
        "explained_variance_ratio": pca.explained_variance_ratio_,
        "range": pca.range_,
    }
    axis = pca.foreground_
    if axis is not None:
        arrays |= {"foreground.component": axis.component, "foreground.mean": axis.mean}
        arrays["foreground.scale"] = np.array([axis.deviation, axis.threshold])
    return arrays


def _facts(pca: PatchPCA) -> dict[str, Any]:
    return {"foreground": pca.foreground, "n_samples": pca.n_samples_, "features": dict(pca.features_)}


def _build(kind: type[PatchPCA], arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> PatchPCA:
    pca = kind(len(arrays["components"]), foreground=facts["foreground"])
    pca.check_parameters()
    pca.components_, pca.mean_, pca.range_ = arrays["components"], arrays["mean"], arrays["range"]
    pca.explained_variance_ = arrays["explained_variance"]
    pca.explained_variance_ratio_ = arrays["explained_variance_ratio"]
    pca.n_samples_, pca.features_ = int(facts["n_samples"]), dict(facts["features"])
    pca.n_features_in_ = len(pca.mean_)
    pca.foreground_ = None
    if pca.foreground is not None:
        deviation, threshold = arrays["foreground.scale"].tolist()
        component, mean = arrays["foreground.component"], arrays["foreground.mean"]
        pca.foreground_ = ForegroundAxis(component, mean, deviation, threshold)
    return pca


def _check(arrays: Mapping[str, np.ndarray]) -> None:
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

"""From a name or a file to a ViT: find it, read it, work out its configuration, check every shape."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vitnp.checkpoints import registry
from vitnp.checkpoints.download import fetch, file_sha256
from vitnp.checkpoints.infer_config import architecture, check_shapes
from vitnp.checkpoints.safetensors_io import read_safetensors
from vitnp.checkpoints.state_dict_names import canonical, flatten
from vitnp.checkpoints.torch_io import read_torch_file
from vitnp.errors import CheckpointError, UsageError
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT

POS_EMBED = ("offset", "exact", "antialias")

# float32 tensors may take this many times the file's bytes (float16 takes 2, int8 beside them 4). More means tensors that
# share their bytes: harmless as views, but not once each is copied.
_MAX_EXPANSION = 8
_SLACK = 2**20  # bytes

_LOOKS_LIKE = {  # what people save under a checkpoint's name by mistake
    b"<": "a web page, not a checkpoint: the download went wrong",
    b"version https://git-lfs": "a Git LFS pointer, not the checkpoint itself: run `git lfs pull` or download it",
    b"{": "JSON text, not a checkpoint: give the file with the weights",
}


class Checkpoint(NamedTuple):
    """What a file holds, translated and checked.

    ``weights`` are float32 under canonical names; ``dialect`` is one of :data:`vitnp.checkpoints.state_dict_names.DIALECTS`; ``metadata`` is
    the text table of a safetensors file, empty for others.
    """

    weights: dict[str, np.ndarray]
    dialect: str
    metadata: dict[str, str]


class Source(NamedTuple):
    """Where a checkpoint is: its entry in the registry when it was asked for by name, its file, the file's SHA-256."""

    entry: registry.Entry | None
    path: pathlib.Path
    sha256: str


def load_vit(
    name_or_path: str | os.PathLike[str] = "auto",
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
) -> ViT:
    """Load a vision transformer by name or from a file.

    Parameters
    ----------
    name_or_path : str or path
        "auto", the built-in checkpoint; a name of the registry (``python -m vitnp.weights list``), fetched when it isn't
        in the cache; or a ``.safetensors``, ``.pth`` or ``.pt`` file of DINO, DINOv2, timm or transformers, or a folder
        with ``model.safetensors`` or ``pytorch_model.bin`` in it. What a file is shows in its content, not in its extension.
    heads : int, optional
        By default what the file's metadata, the registry or a ``config.json`` beside the file says, else width / 64.
    pos_embed : {"offset", "exact", "antialias"}, optional
        How position embeddings are resampled (:mod:`vitnp.vit.pos_embed`). By default as the official code of a registered
        name does, or as the metadata says; for other files "antialias" with register tokens, "exact" with transformers'
        names, else "offset".
    normalization : {"imagenet", "half"}, optional
        By default what the metadata, a ``preprocessor_config.json`` beside the file or the registry says (by SHA-256 or
        the file's name), else "imagenet".

    Returns
    -------
    ViT

    Raises
    ------
    CheckpointError
        Not found, not fetched, damaged, or no ViT that can be run here.
    UsageError
        An option that makes no sense.

    Examples
    --------
    >>> load_vit("auto").config.depth                           # doctest: +SKIP
    6
    """
    source, checkpoint, config = _open(name_or_path, heads, pos_embed, normalization)
    name = source.entry.name if source.entry else source.path.stem
    return ViT(config, checkpoint.weights, name=name, source=str(source.path), sha256=source.sha256)


def describe(
    name_or_path: str | os.PathLike[str],
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
) -> dict[str, str]:
    """What a checkpoint holds and how it will be run, as text for people; arguments as for :func:`load_vit`."""
    (entry, path, sha256), checkpoint, config = _open(name_or_path, heads, pos_embed, normalization)
    parameters = sum(tensor.size for tensor in checkpoint.weights.values())
    facts = {
        "file": str(path),
        "sha256": sha256,
        "container": container(path),
        "names": checkpoint.dialect,
        "parameters": f"{parameters / 1e6:.2f} million in {len(checkpoint.weights)} tensors",
        "width": str(config.width),
        "blocks": str(config.depth),
        "heads": str(config.heads),
        "patch": f"{config.patch} px",
        "trained grid": f"{config.grid[0]} x {config.grid[1]} patches",
        "registers": str(config.registers),
        "MLP": "SwiGLU" if config.swiglu else "GELU",
        "LayerScale": "yes" if config.layerscale else "no",
        "LayerNorm eps": f"{config.eps:g}",
        "positions": config.pos_embed,
        "mean, std": f"{config.mean}, {config.std}",
    }
    if entry or (entry := registry.identify(path.stem, sha256)):
        facts["registered as"] = f"{entry.name}: {entry.title}" + (f". {entry.note}" if entry.note else "")
    facts.update({f"metadata {key}": value for key, value in sorted(checkpoint.metadata.items())})
    return facts


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the weights of a file in any known container and dialect.

    Parameters
    ----------
    path : path

    Returns
    -------
    Checkpoint
        Shapes are not checked yet: :func:`configure` does.

    Raises
    ------
    CheckpointError
    """
    path = pathlib.Path(path)
    metadata: dict[str, str] = {}
    if container(path) == "safetensors":
        tensors, metadata = read_safetensors(path)
    else:
        tensors = flatten(read_torch_file(path))
    claimed = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if claimed > _MAX_EXPANSION * path.stat().st_size + _SLACK:
        raise CheckpointError(f"{path} holds tensors that overlap: expanded they would take {claimed / 1e9:.1f} GB")
    try:
        weights, dialect = canonical(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    return Checkpoint(weights, dialect, metadata)


def container(path: pathlib.Path) -> str:
    """Tell ``"safetensors"`` from ``"torch"`` by the first bytes of a file.

    Raises
    ------
    CheckpointError
        Neither; the sentence says what it looks like, where that is known.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from None
    if start[8:9] == b"{":
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if not start:
        raise CheckpointError(f"{path} is empty")
    for beginning, meaning in _LOOKS_LIKE.items():
        if start.lstrip().startswith(beginning):
            raise CheckpointError(f"{path} is {meaning}")
    raise CheckpointError(f"{path} is neither a safetensors nor a torch file")


def configure(
    checkpoint: Checkpoint,
    source: Source,
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
) -> ViTConfig:
    """Derive the configuration from shapes, metadata and what lies beside the file, and check every shape.

    Parameters
    ----------
    checkpoint : Checkpoint
    source : Source
        With an entry the conventions of the official code hold. The path is for the files beside it and for messages.
    heads, pos_embed, normalization
        As in :func:`load_vit`.

    Raises
    ------
    CheckpointError
    """
    entry, path, sha256 = source
    weights, dialect, metadata = checkpoint
    try:
        shape = architecture(weights, _trained_grid(metadata))
        check_shapes(weights, shape)
        kin = entry or registry.identify(path.stem, sha256)
        beside = {} if entry or dialect == "timm" else _json_beside(path, "config.json")
        if heads is None:
            heads = _heads(shape.width, metadata, kin, beside)
        if heads < 1 or shape.width % heads:
            raise CheckpointError(f"{heads} heads don't divide its width of {shape.width}: give the right --heads")
        eps = _first(
            _number(metadata, "norm_eps"),
            None if entry else _number(beside, "layer_norm_eps"),
            1e-6,
        )
        if not 0 < eps < 1:
            raise CheckpointError(f"its LayerNorm epsilon is {eps}, which can't be")
        if pos_embed is None:
            pos_embed = _pos_embed(metadata, entry, dialect, shape.registers)
        mean, std = _normalization(normalization, metadata, path, entry, kin)
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    return dataclasses.replace(shape, heads=heads, eps=eps, pos_embed=pos_embed, mean=mean, std=std)


def _open(
    name_or_path: str | os.PathLike[str], heads: int | None, pos_embed: str | None, normalization: str | None
) -> tuple[Source, Checkpoint, ViTConfig]:
    _check_options(heads, pos_embed, normalization)
    source = _locate(name_or_path)
    checkpoint = read_checkpoint(source.path)
    return (
        source,
        checkpoint,
        configure(checkpoint, source, heads=heads, pos_embed=pos_embed, normalization=normalization),
    )


def _check_options(heads: int | None, pos_embed: str | None, normalization: str | None) -> None:
    if heads is not None and heads < 1:
        raise UsageError(f"heads should be a whole number from 1 on, not {heads}")
    if pos_embed is not None and pos_embed not in POS_EMBED:
        raise UsageError(f"pos_embed should be one of {', '.join(POS_EMBED)}, not {pos_embed}")
    if normalization is not None and normalization not in registry.NORMALIZATIONS:
        raise UsageError(f"normalization should be one of {', '.join(registry.NORMALIZATIONS)}, not {normalization}")


def _locate(name_or_path: str | os.PathLike[str]) -> Source:
    """Find the file, fetched if it has to be. Names come before files."""
    name = os.fspath(name_or_path)
    if name == "auto" or name in registry.entries():
        path, sha256 = fetch(name)
        return Source(registry.find(name), path, sha256)
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        inside = [path / file for file in ("model.safetensors", "pytorch_model.bin") if (path / file).is_file()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without model.safetensors: give the file with the weights")
        path = inside[0]
    elif not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise CheckpointError(
                f"{path} doesn't exist: give a checkpoint file, or a name of `python -m vitnp.weights list`"
            )
        registry.find(name)
    return Source(None, path, file_sha256(path))


def _trained_grid(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    if "grid" not in metadata:
        return None
    rows, columns = _numbers(metadata["grid"], 2, "grid")
    return int(rows), int(columns)


def _heads(width: int, metadata: Mapping[str, str], kin: registry.Entry | None, beside: Mapping[str, Any]) -> int:
    said = _first(_number(metadata, "heads"), kin and kin.heads, _number(beside, "num_attention_heads"))
    if said is None:
        if width % 64:
            raise CheckpointError(f"how many heads it has can't be told from its width of {width}: give --heads")
        return width // 64
    if said != int(said):
        raise CheckpointError(f"it says it has {said} heads, which can't be")
    return int(said)


def _pos_embed(metadata: Mapping[str, str], entry: registry.Entry | None, dialect: str, registers: int) -> str:
    if entry:
        return entry.pos_embed
    if "pos_embed" in metadata:
        if metadata["pos_embed"] not in POS_EMBED:
            raise CheckpointError(
                f"its metadata says pos_embed {metadata['pos_embed'][:40]!r}, not one of {', '.join(POS_EMBED)}"
            )
        return metadata["pos_embed"]
    if registers:
        return "antialias"
    return "offset" if dialect == "timm" else "exact"


def _normalization(
    normalization: str | None,
    metadata: Mapping[str, str],
    path: pathlib.Path,
    entry: registry.Entry | None,
    kin: registry.Entry | None,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation: the argument's, the metadata's, the preprocessor's, the registry's, ImageNet's."""
    if normalization is not None:
        return registry.NORMALIZATIONS[normalization]
    beside = {} if entry else _json_beside(path, "preprocessor_config.json")
    for mean, std in ((metadata.get("mean"), metadata.get("std")), (beside.get("image_mean"), beside.get("image_std"))):
        if mean is not None and std is not None:
            mean, std = _numbers(mean, 3, "mean"), _numbers(std, 3, "std")
            if not all(0 < value < 100 for value in std):
                raise CheckpointError("the standard deviation of its normalization isn't positive")
            return mean, std
    return registry.NORMALIZATIONS[kin.normalization if kin else "imagenet"]


def _json_beside(path: pathlib.Path, name: str) -> dict[str, Any]:
    """The table in a JSON file beside the checkpoint, empty when there is none."""
    try:
        table = json.loads((path.parent / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(f"{name} beside it can't be read: mend it or move it away") from None
    return table if isinstance(table, dict) else {}


def _number(table: Mapping[str, Any], name: str) -> float | None:
    return None if table.get(name) is None else _numbers(table[name], 1, name)[0]


def _numbers(value: Any, count: int, name: str) -> tuple[Any, ...]:
    """Numbers out of metadata: "0.5,0.5,0.5", [0.5, 0.5, 0.5] or one alone."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise CheckpointError(f"its {name} should be {count} number{'s' * (count > 1)}, not {str(value)[:40]!r}")
    return numbers


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)

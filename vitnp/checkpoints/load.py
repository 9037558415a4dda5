"""Load a ViT by name or from a file: find the file, read it, infer its configuration, check every shape."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

from vitnp.checkpoints import registry
from vitnp.checkpoints.download import fetch, file_sha256
from vitnp.checkpoints.infer_config import Overrides, infer_config
from vitnp.checkpoints.read import Checkpoint, container_format, read_checkpoint
from vitnp.errors import CheckpointError
from vitnp.io.path_text import valid_unicode
from vitnp.vit.config import ViTConfig
from vitnp.vit.model import ViT


class _Opened(NamedTuple):
    entry: registry.Entry | None  # only if the checkpoint was asked for by name
    path: pathlib.Path
    sha256: str
    checkpoint: Checkpoint
    config: ViTConfig


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
        One of

        - "auto", the built-in checkpoint;
        - a name in the registry (``python -m vitnp.weights list``), downloaded unless it is in the cache;
        - a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file of DINO, DINOv2, timm or transformers, told by its
          content, not by its extension;
        - a folder that holds ``model.safetensors`` or ``pytorch_model.bin``.
    heads : int, optional
        Number of attention heads. By default as in the metadata of the file, else the registry, else a ``config.json``
        beside the file, else width / 64.
    pos_embed : {"offset", "exact", "antialias"}, optional
        Interpolation of position embeddings, see :mod:`vitnp.vit.pos_embed`. By default as in the official code of a
        registered name, else the metadata; else "antialias" with register tokens, "exact" with tensor names of
        transformers, "offset" with others.
    normalization : {"imagenet", "half"}, optional
        Mean and standard deviation of the input: those of ImageNet, or 0.5. By default as in the metadata, else a
        ``preprocessor_config.json`` beside the file, else the registry (found by SHA-256 or file name), else
        "imagenet".

    Returns
    -------
    ViT

    Raises
    ------
    CheckpointError
        If the checkpoint can't be found, downloaded or read, is damaged, or isn't a plain ViT.
    UsageError
        If `heads`, `pos_embed` or `normalization` isn't allowed.

    Examples
    --------
    >>> load_vit("auto")
    ViT(vitnp_tiny: depth 6, width 192, heads 3, patch 16)
    """
    opened = _open(name_or_path, Overrides(heads, pos_embed, normalization))
    name = opened.entry.name if opened.entry else valid_unicode(opened.path.stem)
    return ViT(opened.config, opened.checkpoint.weights, name=name, source=str(opened.path), sha256=opened.sha256)


def describe(
    name_or_path: str | os.PathLike[str],
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
) -> dict[str, str]:
    """Describe what a checkpoint holds and how it will be run; the parameters are those of :func:`load_vit`.

    Returns
    -------
    dict of str to str
        Facts for people to read. Metadata of the file are under "metadata " and their key.

    Examples
    --------
    >>> describe("auto")["trained grid"]
    '14 x 14 patches'
    """
    entry, path, sha256, checkpoint, config = _open(name_or_path, Overrides(heads, pos_embed, normalization))
    n_parameters = sum(tensor.size for tensor in checkpoint.weights.values())
    facts = {
        "file": str(path),
        "sha256": sha256,
        "container": container_format(path),
        "names": checkpoint.dialect.name,
        "parameters": f"{n_parameters / 1e6:.2f} million in {len(checkpoint.weights)} tensors",
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
    entry = entry or registry.identify(path.stem, sha256)
    if entry:
        facts["registered as"] = f"{entry.name}: {entry.title}" + (f". {entry.note}" if entry.note else "")
    facts.update({f"metadata {key}": value for key, value in sorted(checkpoint.metadata.items())})
    return facts


def _open(name_or_path: str | os.PathLike[str], overrides: Overrides) -> _Opened:
    entry, path, sha256 = _locate(os.fspath(name_or_path))
    checkpoint = read_checkpoint(path)
    config = infer_config(checkpoint, path, entry=entry, sha256=sha256, overrides=overrides)
    return _Opened(entry, path, sha256, checkpoint, config)


def _locate(name: str) -> tuple[registry.Entry | None, pathlib.Path, str]:
    """Find or download the file; return its registry entry if it was asked for by name, its path and its SHA-256.

    Names of the registry take precedence over files.
    """
    if name == "auto" or name in registry.entries():
        path, sha256 = fetch(name)
        return registry.find(name), path, sha256
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        files = [path / file for file in ("model.safetensors", "pytorch_model.bin") if (path / file).is_file()]
        if not files:
            raise CheckpointError(f"{path} is a folder without model.safetensors: give the file with the weights")
        path = files[0]
    elif not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise CheckpointError(
                f"{path} doesn't exist: give a checkpoint file, or a name of `python -m vitnp.weights list`"
            )
        registry.find(name)  # raises, with a suggestion
    return None, path, file_sha256(path)

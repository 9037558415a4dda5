"""Load a ViT by name or from a file: find the file, read it, infer its configuration, check every shape."""

from __future__ import annotations

import os
import pathlib
from typing import NamedTuple

from vitnp.checkpoints import registry
from vitnp.checkpoints.download import fetch, file_sha256
from vitnp.checkpoints.infer_config import InferredConfig, Overrides, infer_config
from vitnp.checkpoints.read import Checkpoint, container_format, read_checkpoint
from vitnp.errors import CheckpointError
from vitnp.vit.model import ViT


class _Opened(NamedTuple):
    entry: registry.Entry | None  # only if the checkpoint was asked for by name
    path: pathlib.Path
    sha256: str
    checkpoint: Checkpoint
    inferred: InferredConfig


def load_vit(
    name_or_path: str | os.PathLike[str] = "auto",
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
    grid: str | tuple[int, int] | None = None,
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
        Number of attention heads. By default as in the metadata of the file, else a ``config.json`` beside the file,
        else the registry, else as in the published networks of this width and depth. Else width / 64 is taken, and
        logged as a guess.
    pos_embed : {"offset", "exact", "antialias"}, optional
        Interpolation of position embeddings, see :mod:`vitnp.vit.pos_embed`. By default as in the official code of a
        registered name, else the metadata, else as in the code base that a ``config.json`` or the tensor names tell:
        "antialias" for timm and networks with registers, "exact" for transformers, "offset" for DINO and DINOv2.
    normalization : {"imagenet", "half"}, optional
        Mean and standard deviation of the input: those of ImageNet, or 0.5. By default as in the metadata, else a
        ``preprocessor_config.json`` or timm's ``config.json`` beside the file, else the registry (found by SHA-256 or
        file name), else the code base. Else "imagenet" is taken, and logged as a guess.
    grid : str or (int, int), optional
        Rows and columns of patches that the position embeddings were trained on, such as "14x16". By default as in the
        metadata, else the image size in a ``config.json``, else square.

    Returns
    -------
    ViT

    Raises
    ------
    CheckpointError
        If the checkpoint can't be found, downloaded or read, is damaged, isn't a plain ViT, or a file beside it
        declares something that vitnp doesn't compute.
    UsageError
        If `heads`, `pos_embed`, `normalization` or `grid` isn't allowed.

    Examples
    --------
    >>> load_vit("auto")
    ViT(vitnp_tiny: depth 6, width 192, heads 3, patch 16)
    """
    opened = _open(name_or_path, Overrides(heads, pos_embed, normalization, grid))
    name = opened.entry.name if opened.entry else opened.path.stem
    return ViT(
        opened.inferred.config, opened.checkpoint.weights, name=name, source=str(opened.path), sha256=opened.sha256
    )


def describe(
    name_or_path: str | os.PathLike[str],
    *,
    heads: int | None = None,
    pos_embed: str | None = None,
    normalization: str | None = None,
    grid: str | tuple[int, int] | None = None,
) -> dict[str, str]:
    """Describe what a checkpoint holds and how it will be run; the parameters are those of :func:`load_vit`.

    Returns
    -------
    dict of str to str
        Facts for people to read. Metadata of the file are under "metadata " and their key.

    Examples
    --------
    >>> describe("auto")["trained grid"]
    '14 x 14 patches (square)'
    """
    opened = _open(name_or_path, Overrides(heads, pos_embed, normalization, grid))
    entry, path, sha256, checkpoint, (config, sources, resizing) = opened
    n_parameters = sum(tensor.size for tensor in checkpoint.weights.values())
    facts = {
        "file": str(path),
        "sha256": sha256,
        "container": container_format(path),
        "names": checkpoint.dialect.name,
        "parameters": f"{n_parameters / 1e6:.2f} million in {len(checkpoint.weights)} tensors",
        "width": str(config.width),
        "blocks": str(config.depth),
        "heads": f"{config.heads} ({sources['heads']})",
        "patch": f"{config.patch} px",
        "trained grid": f"{config.grid[0]} x {config.grid[1]} patches ({sources['grid']})",
        "registers": str(config.registers),
        "MLP": "SwiGLU" if config.swiglu else "GELU",
        "LayerScale": "yes" if config.layerscale else "no",
        "LayerNorm eps": f"{config.eps:g} ({sources['eps']})",
        "positions": f"{config.pos_embed} ({sources['pos_embed']})",
        "mean, std": f"{config.mean}, {config.std} ({sources['normalization']})",
    }
    if resizing:
        facts["resizing"] = f"by --short-side and bicubic, not as its config says ({resizing})"
    entry = entry or registry.identify(path.stem, sha256)
    if entry:
        facts["registered as"] = f"{entry.name}: {entry.title}" + (f". {entry.note}" if entry.note else "")
    facts.update({f"metadata {key}": value for key, value in sorted(checkpoint.metadata.items())})
    return facts


def _open(name_or_path: str | os.PathLike[str], overrides: Overrides) -> _Opened:
    entry, path, sha256 = _locate(os.fspath(name_or_path))
    checkpoint = read_checkpoint(path)
    inferred = infer_config(checkpoint, path, entry=entry, sha256=sha256, overrides=overrides)
    return _Opened(entry, path, sha256, checkpoint, inferred)


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

"""Load a ViT by name or from files: find them, read them, infer the configuration, check every shape."""

from __future__ import annotations

import os
from typing import NamedTuple

from vitnp.checkpoints import registry
from vitnp.checkpoints.container import container_format
from vitnp.checkpoints.infer_config import InferredConfig, infer_config
from vitnp.checkpoints.locate import Location, locate
from vitnp.checkpoints.overrides import Overrides
from vitnp.checkpoints.read import Checkpoint, read_checkpoint
from vitnp.checkpoints.sharded import files_of
from vitnp.errors import CheckpointError
from vitnp.io.path_text import valid_unicode
from vitnp.vit.model import ViT

_FINAL_NORMS = {
    "norm": "yes",
    "fc_norm": "fc_norm, trained on the average of the patches",
    "none": "none: tokens and CLS can't be used, keys can",
    "cls_norm": "yes, another one for CLS and registers",
}


class _Opened(NamedTuple):
    location: Location
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
        - a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file of DINO, DINOv2, DINOv3, timm or transformers, told by
          its content, not by its extension, or the ``.index.json`` of one in several files;
        - a folder that holds ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards, as transformers and
          timm save it;
        - "org/name", a model in the local cache of the Hugging Face Hub; nothing is fetched from there.
    heads : int, optional
        Number of attention heads. By default as in the metadata of the file, else a ``config.json`` beside the file,
        else the registry, else as in the published networks of this width and depth. Else width / 64 is taken, and
        logged as a guess.
    pos_embed : {"offset", "exact", "antialias"}, optional
        Interpolation of position embeddings, see :mod:`vitnp.vit.pos_embed`. By default as in the official code of a
        registered name, else the metadata, else as in the code base that a ``config.json`` or the tensor names tell:
        "antialias" for timm and networks with registers, "exact" for transformers, "offset" for DINO and DINOv2. It has
        no effect on networks with rotary positions, as DINOv3.
    normalization : {"imagenet", "half", "sat493m"}, optional
        Mean and standard deviation of the input: those of ImageNet, or 0.5. By default as in the metadata, else a
        ``preprocessor_config.json`` or timm's ``config.json`` beside the file, else the registry (found by SHA-256 or
        file name), else the code base. Else "imagenet" is taken, and logged as a guess.
    grid : str or (int, int), optional
        Rows and columns of patches that the position embeddings were trained on, such as "14x16". By default as in the
        metadata, else the image size in a ``config.json``, else square. It has no effect on rotary positions.

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
    ViT(vitnp_tiny: depth 12, width 192, heads 3, patch 16)
    """
    (_, name, path, sha256), checkpoint, inferred = _open(
        name_or_path, Overrides(heads, pos_embed, normalization, grid)
    )
    weights = checkpoint.weights
    if inferred.periods is not None:
        weights = weights | {"rope_embed.periods": inferred.periods}
    return ViT(inferred.config, weights, name=valid_unicode(name), source=str(path), sha256=sha256)


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
    location, checkpoint, (config, sources, resizing, periods) = _open(
        name_or_path, Overrides(heads, pos_embed, normalization, grid)
    )
    entry, _, path, sha256 = location
    files = files_of(path)
    n_parameters = sum(tensor.size for tensor in checkpoint.weights.values())
    facts = {
        "file": str(path),
        "sha256": sha256,
        "container": container_format(files[0])
        + (f" in {len(files)} file{'s' * (len(files) > 1)} with an index" if files != [path] else ""),
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
        "final norm": _FINAL_NORMS[checkpoint.final_norm],
        "positions": f"{config.pos_embed} ({sources['pos_embed']})"
        if periods is None
        else f"rotary ({sources['periods']})",
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
    location = locate(os.fspath(name_or_path))
    checkpoint = read_checkpoint(location.path)
    inferred = infer_config(
        checkpoint, location.path, entry=location.entry, sha256=location.sha256, overrides=overrides
    )
    if location.entry:
        try:
            location.entry.check_architecture(inferred.config)
        except CheckpointError as error:
            raise CheckpointError(f"{location.path} can't be used: {error}") from None
    return _Opened(location, checkpoint, inferred)

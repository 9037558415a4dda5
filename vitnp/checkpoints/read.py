"""Read the weights of a checkpoint, whatever its container, its number of files and the names of its tensors."""

from __future__ import annotations

import math
import os
import pathlib
from typing import NamedTuple

import numpy as np

from vitnp.checkpoints.container import container_format, read_tensors
from vitnp.checkpoints.nested import MAX_TENSORS, unwrap, use_fc_norm
from vitnp.checkpoints.sharded import files_of, read_sharded
from vitnp.checkpoints.state_dict_names import Dialect, to_canonical
from vitnp.errors import CheckpointError

# Tensors as float32 may take this many times the bytes of their files; float16 takes 2, int8 beside it 4. More means
# tensors that share their bytes: as views they take no memory, but each of them is copied later.
_MAX_EXPANSION = 8
_MAX_EXPANSION_SLACK = 2**20  # bytes


class Checkpoint(NamedTuple):
    """Contents of a checkpoint.

    Attributes
    ----------
    weights : dict of str to float32 array
        Weights under canonical names.
    dialect : Dialect
        Dialect of the names in the file.
    metadata : dict of str to str
        Metadata of a safetensors file; empty for torch files.
    final_norm : {"norm", "cls_norm", "fc_norm", "none"}
        Name of the final norm in the file, see :func:`vitnp.checkpoints.nested.use_fc_norm`; "cls_norm" if CLS and
        registers have one of their own.
    """

    weights: dict[str, np.ndarray]
    dialect: Dialect
    metadata: dict[str, str]
    final_norm: str = "norm"


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the weights of a file in any known container and dialect, or of the shards that an index names.

    Shapes are not checked here; :func:`vitnp.checkpoints.infer_config.infer_config` does.

    Raises
    ------
    CheckpointError
        If the file can't be read, is damaged, or holds no plain ViT.

    Examples
    --------
    >>> read_checkpoint("weights/vitnp_tiny.safetensors").dialect.name      # doctest: +SKIP
    'timm'
    """
    path = pathlib.Path(path)
    tensors, metadata = read_sharded(path) if container_format(path) == "index" else read_tensors(path)
    n_bytes = sum(file.stat().st_size for file in files_of(path))
    expanded = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
    if expanded > _MAX_EXPANSION * n_bytes + _MAX_EXPANSION_SLACK:
        raise CheckpointError(f"{path} holds tensors that overlap: expanded they would take {expanded / 1e9:.1f} GB")
    try:
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"it holds more than {MAX_TENSORS:,} tensors, too many for a ViT")
        unwrapped = unwrap(tensors)
        renamed = use_fc_norm(unwrapped)
        weights, dialect = to_canonical(renamed)
    except CheckpointError as error:
        raise CheckpointError(f"{path} can't be used: {error}") from None
    final_norm = "fc_norm" if renamed.keys() != unwrapped.keys() else "norm"
    if "cls_norm.weight" in weights:
        final_norm = "cls_norm"
    return Checkpoint(weights, dialect, metadata, final_norm if "norm.weight" in weights else "none")

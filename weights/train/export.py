"""Export of a trained network as a checkpoint that vitnp reads."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from vitnp.weights.train.data.sampler import BASE_SIZE, round_to_patch

from vitnp.checkpoints.safetensors_io import write_safetensors
from vitnp.vit.config import ViTConfig


def write_checkpoint(
    path: str | os.PathLike[str],
    weights: Mapping[str, np.ndarray],
    config: ViTConfig,
    metadata: Mapping[str, str],
) -> None:
    """Write weights as float16, with everything needed to load them as metadata; atomic.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file; replaced if it exists.
    weights : mapping of str to float array
        Weights by name.
    config : ViTConfig
        Architecture and preprocessing.
    metadata : mapping of str to str
        Informational metadata, such as name, license and origin.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    metadata = {
        **metadata,
        "img": str(round_to_patch((BASE_SIZE, BASE_SIZE), config.patch)[0]),
        "patch": str(config.patch),
        "dim": str(config.width),
        "depth": str(config.depth),
        "heads": str(config.heads),
        "norm_eps": repr(config.eps),
        "pos_embed": config.pos_embed,
        "mean": ",".join(map(repr, config.mean)),
        "std": ",".join(map(repr, config.std)),
    }
    write_safetensors(path, {key: weight.astype(np.float16) for key, weight in weights.items()}, metadata)

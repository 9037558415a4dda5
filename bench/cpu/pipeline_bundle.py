"""Export vitnp's network and collection for :mod:`bench.cpu.pipeline_peer`, which doesn't import vitnp."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.cpu.vit_onnx import onnx_model
from vitnp.io import decode, preprocess
from vitnp.method.collection import Collection
from vitnp.vit.model import ViT
from vitnp.vit.pos_embed import resample_abs_pos_embed


def write_bundle(folder: Path, vit: ViT, collection: Collection, photograph: Path) -> None:
    """Write ``network.onnx`` and ``collection.npz``.

    Parameters
    ----------
    folder : path
        An existing folder.
    vit : ViT
    collection : Collection
    photograph : path
        The network takes images of the size at which vitnp would process this photograph.
    """
    config, rgb = vit.config, decode.read_image(photograph)
    (height, width), _ = preprocess.network_size(*rgb.shape[:2], patch=config.patch)
    grid = height // config.patch, width // config.patch
    table = vit.weights["pos_embed"][0]
    patches = resample_abs_pos_embed(table[1:].reshape(*config.grid, -1), grid, config.pos_embed)
    weights = {**vit.weights, "pos_embed": np.concatenate([table[:1], patches])[None]}
    (folder / "network.onnx").write_bytes(onnx_model(config, weights, grid, 1, features=True))

    arrays = {"patch": np.array(config.patch), "centers": collection.centers}
    arrays |= {name: np.array(getattr(config, name), np.float32) for name in ("mean", "std")}
    levels = {"dataset": collection.dataset}
    levels |= {f"category.{index}": level for index, level in enumerate(collection.categories)}
    for name, level in levels.items():
        arrays[f"{name}.temperature"] = np.array(level.temperature, np.float32)
        for index, (centroids, shares) in enumerate(zip(level.centroids, level.shares)):
            arrays[f"{name}.{index}.centroids"], arrays[f"{name}.{index}.shares"] = centroids, shares
    np.savez(folder / "collection.npz", **arrays)

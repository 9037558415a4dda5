"""Combine the answers of the levels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vitnp import kernels, options
from vitnp.method.collection_level import CollectionLevelConfig
from vitnp.method.image_level import ImageLevelConfig


def combine_levels(levels: Sequence[np.ndarray], consistency: str = "mean") -> np.ndarray:
    """One score from several levels' answers.

    Parameters
    ----------
    levels : sequence of (N,) float
        Of the same patches: soft answers for "mean", hard ones for the others. All on one device.
    consistency : {"mean", "majority", "intersection"}
        The mean of soft answers; or 1 where more than half, or all, of the hard answers are 1 (the literal reading of the paper).

    Returns
    -------
    (N,) float32

    Examples
    --------
    >>> combine_levels([np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])], "majority")
    array([1., 1., 0.], dtype=float32)
    """
    mean = kernels.array_module(levels[0]).stack(levels).mean(axis=0, dtype=np.float64)
    if consistency == "mean":
        return mean.astype(np.float32)
    options.check("consistency", consistency)
    return (mean > 0.5 if consistency == "majority" else mean == 1).astype(np.float32)


def two_cluster_variant(config: ImageLevelConfig | CollectionLevelConfig) -> ImageLevelConfig | CollectionLevelConfig:
    """The same constants with two clusters alone, as "majority" and "intersection" want them."""
    return dataclasses.replace(config, clusters=(2,))

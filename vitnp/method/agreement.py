"""Combine the answers of the levels into one score per patch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vitnp import kernels, options
from vitnp.method.collection_level import CollectionLevelConfig
from vitnp.method.image_level import ImageLevelConfig

AnyConfig = TypeVar("AnyConfig", ImageLevelConfig, CollectionLevelConfig)


def combine_levels(levels: Sequence[np.ndarray], consistency: str = "mean") -> np.ndarray:
    """Combine the answers of several levels.

    Parameters
    ----------
    levels : sequence of (N,) float
        Answers for the same N patches: soft ones for "mean", hard ones otherwise. All on one device.
    consistency : {"mean", "majority", "intersection"}
        The mean of the answers; or 1 where more than half, or all, of the answers are 1. With hard answers of two
        clusters (:func:`two_cluster_variant`) the majority is the literal reading of arXiv 2311.18628.

    Returns
    -------
    (N,) float32
        On the device of the levels.

    Raises
    ------
    UsageError
        If `consistency` is not one of these.

    Examples
    --------
    >>> levels = [np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])]
    >>> combine_levels(levels, "majority")
    array([1., 1., 0.], dtype=float32)
    """
    mean = kernels.array_module(levels[0]).stack(levels).mean(axis=0, dtype=np.float64)
    if consistency == "mean":
        return mean.astype(np.float32)
    options.check("consistency", consistency)
    return (mean > 0.5 if consistency == "majority" else mean == 1).astype(np.float32)


def two_cluster_variant(config: AnyConfig) -> AnyConfig:
    """Return the same constants with two clusters only, as "majority" and "intersection" need them."""
    return dataclasses.replace(config, clusters=(2,))

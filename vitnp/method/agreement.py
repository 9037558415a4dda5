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

# Weights of the image, data set, category and readout level in their mean: for photographs of any kind, as the built-in
# collection meets them, and for those of the kind that a collection was fitted to, whose categories fit them better.
ANY_PHOTOGRAPHS = (1.0, 1.0, 1.0, 2.0)
OWN_PHOTOGRAPHS = (1.0, 1.0, 2.0, 3.0)
# Overlap of data set and readout level below which the readout does not count for a photograph. Both know the patches
# of all photographs; where they contradict each other, the photograph is unlike those that the readout was fitted to.
LEAST_OVERLAP = 0.5


def combine_levels(
    levels: Sequence[np.ndarray], consistency: str = "mean", weights: Sequence[float] | None = None
) -> np.ndarray:
    """Combine the answers of several levels.

    Parameters
    ----------
    levels : sequence of (N,) float
        Answers for the same N patches: soft ones for "mean", hard ones otherwise. All on one device.
    consistency : {"mean", "majority", "intersection"}
        The mean of the answers; or 1 where more than half, or all, of the answers are 1. With hard answers of two
        clusters (:func:`two_cluster_variant`) the majority is the literal reading of arXiv 2311.18628.
    weights : sequence of float, optional
        Weight of each level in the mean, at least one of them positive; by default :func:`level_weights`. Votes count
        the same.

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
    options.check("consistency", consistency)
    stack = kernels.array_module(levels[0]).stack(levels).astype(np.float64)
    if consistency == "mean":
        weights = level_weights(levels) if weights is None else weights
        column = kernels.to_device(np.array(weights, np.float64)[:, None], kernels.device_of(stack))
        return ((stack * column).sum(axis=0) / sum(weights)).astype(np.float32)
    mean = stack.mean(axis=0)
    return (mean > 0.5 if consistency == "majority" else mean == 1).astype(np.float32)


def level_weights(levels: Sequence[np.ndarray], four: Sequence[float] = ANY_PHOTOGRAPHS) -> tuple[float, ...]:
    """Return the weights of levels in their mean: equal, but with the readout level of a collection `four`.

    The readout, the last of four levels, counts nothing where its foreground and that of the data set level, the
    second, have an IoU below one half.

    Parameters
    ----------
    levels : sequence of (N,) float
        Soft answers, as :meth:`vitnp.method.collection.Collection.levels` returns them.
    four : sequence of 4 float
        :data:`ANY_PHOTOGRAPHS`, or :data:`OWN_PHOTOGRAPHS`.

    Examples
    --------
    >>> image, dataset, category = np.eye(3)
    >>> level_weights([image, dataset, category, dataset]), level_weights([image, dataset, category, image])
    ((1.0, 1.0, 1.0, 2.0), (1.0, 1.0, 1.0, 0.0))
    """
    if len(levels) != len(four):
        return (1.0,) * len(levels)
    agrees = overlap(levels[1], levels[3]) >= LEAST_OVERLAP
    return tuple(four) if agrees else (*four[:3], 0.0)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of the patches that two levels call foreground, those above one half; 1 if there are none.

    Examples
    --------
    >>> overlap(np.array([0.9, 0.7, 0.1]), np.array([0.9, 0.2, 0.3]))
    0.5
    """
    union = int(((one > 0.5) | (other > 0.5)).sum())
    return int(((one > 0.5) & (other > 0.5)).sum()) / union if union else 1.0


def two_cluster_variant(config: AnyConfig) -> AnyConfig:
    """Return the same constants with two clusters only, as "majority" and "intersection" need them."""
    return dataclasses.replace(config, clusters=(2,))

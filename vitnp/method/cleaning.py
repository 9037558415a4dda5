"""The cleaning of patch scores: small islands of foreground are pushed below the threshold."""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp import kernels
from vitnp.masks import components


@dataclasses.dataclass(frozen=True)
class CleaningConfig:
    """Constants of the cleaning step.

    Attributes
    ----------
    relative, absolute : float
        A component is small when it's smaller than this share of the largest one, or of the image. Lower `relative` for
        photographs of many objects.
    cap : float
        Score that patches of a small component keep at most: below a half, yet not nothing, so that refinement may disagree.
    """

    relative: float = 0.2
    absolute: float = 0.01
    cap: float = 0.25


def clean(score: np.ndarray, config: CleaningConfig = CleaningConfig()) -> np.ndarray:
    """Push small islands of foreground below the threshold.

    8-connected components of score > 0.5 that are smaller than ``max(relative x the largest, absolute x the image)``
    are capped, unless there is only one.

    Parameters
    ----------
    score : (rows, columns) float
        Foreground score of each patch, 0..1.
    constants : CleaningConfig

    Returns
    -------
    (rows, columns) float
        A new array of the same type.

    Examples
    --------
    >>> score = np.zeros((4, 12)); score[1:3, 1:8] = 0.9; score[3, 11] = 0.8
    >>> float(clean(score)[3, 11])
    0.25
    """
    if kernels.device_of(score) == "cuda":
        return kernels.for_array(score).clean(score, *dataclasses.astuple(config))
    labels = components.label(score > 0.5)
    if labels.max(initial=0) < 2:
        return score.copy()
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    small = sizes < max(config.relative * sizes.max(), config.absolute * score.size)
    small[0] = False
    return np.where(small[labels], np.minimum(score, score.dtype.type(config.cap)), score)

"""Clean patch scores: cap small islands of foreground below the threshold."""

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
        A component is small if it has less than this share of the patches of the largest component, or of the image.
        Lower `relative` for photographs of many objects.
    cap : float
        Highest score of patches in small components: below one half, but not 0, so that refinement may disagree.
    """

    relative: float = 0.2
    absolute: float = 0.01
    cap: float = 0.25


def clean(score: np.ndarray, config: CleaningConfig = CleaningConfig()) -> np.ndarray:
    """Cap the score of small islands of foreground.

    Islands are 8-connected components of score > 0.5. Those with fewer than max(relative * size of the largest
    component, absolute * size of the image) patches are capped, unless there is only one component.

    Parameters
    ----------
    score : (rows, columns) float
        Foreground score of each patch, 0 to 1. On a GPU also those of several photographs, (N, rows, columns).
    config : CleaningConfig

    Returns
    -------
    array with the shape of `score`
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

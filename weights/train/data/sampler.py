"""Which photographs and which parts of them make up a batch: pure functions of a seed and the batch's number.

Nothing here has a state, so that a run that was interrupted goes on with the very batches it would have had.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

# Height and width of crops in pixels, for patches of 16. Most are square and as large as the grid of position
# embeddings; the others teach the network other sizes and aspects, since photographs come whole.
SHAPES = ((224, 224),) * 6 + ((256, 320), (320, 256), (320, 400), (400, 320))
TRAINED = 224

_AREA = (0.45, 1.0)  # of the photograph
_ASPECT = (0.85, 1.18)  # of what is cut, over that of the crop: how much it gets squeezed
_FEWEST = 4  # crops in a batch, however large they are
_ORDER, _BATCH = range(2)  # streams of random numbers


class Plan(NamedTuple):
    """A batch of crops, all of one shape.

    ``shape`` is their (height, width) in pixels, ``pictures`` (n,) int64 which photographs; ``area``, ``aspect``,
    ``across``, ``down`` (n,) float64 and ``mirrored`` (n,) bool say what is cut, see :func:`boxes`.
    """

    shape: tuple[int, int]
    pictures: np.ndarray
    area: np.ndarray
    aspect: np.ndarray
    across: np.ndarray
    down: np.ndarray
    mirrored: np.ndarray


def plan(number: int, pictures: int, size: int, patch: int, seed: int) -> Plan:
    """The plan of a batch.

    Parameters
    ----------
    number : int
        Of the batch, from 0 on.
    pictures : int
        How many photographs there are, at least `size`. Each comes once before any comes again, but for those that a
        batch of large crops has no room for and the odd ones at the end of a round.
    size : int
        Crops in a batch of 224 x 224; larger crops are fewer, for the same work.
    patch : int
        Sides are the multiples of it nearest to those of :data:`SHAPES`.
    seed : int

    Examples
    --------
    >>> plan(0, pictures=100, size=8, patch=16, seed=0).shape
    (224, 224)
    """
    rng = np.random.default_rng([seed, _BATCH, number])
    shape = SHAPES[rng.integers(len(SHAPES))]
    count = min(size, max(_FEWEST, round(size * TRAINED**2 / math.prod(shape))))
    a_round, place = divmod(number, pictures // size)
    chosen = _order(a_round, pictures, seed)[place * size : place * size + count]
    area = rng.uniform(*_AREA, count)
    aspect = np.exp(rng.uniform(*np.log(_ASPECT), count))
    across, down = rng.random((2, count))
    return Plan(snapped(shape, patch), chosen, area, aspect, across, down, rng.random(count) < 0.5)


def boxes(plan: Plan, sizes: np.ndarray) -> np.ndarray:
    """What is cut out of each photograph.

    Parameters
    ----------
    plan : Plan
    sizes : (n, 2) int
        Height and width of its photographs.

    Returns
    -------
    (n, 4) float64
        Left, top, right and bottom in pixels, inside the photograph.

    Examples
    --------
    >>> boxes(plan(0, 100, 8, 16, 0), np.tile([[300, 400]], (8, 1)))[0].round().tolist()
    [29.0, 2.0, 337.0, 297.0]
    """
    height, width = np.asarray(sizes, np.float64).T
    area = plan.area * height * width
    aspect = plan.aspect * plan.shape[1] / plan.shape[0]
    # A side that would stick out is shortened, the other one stays.
    cut_width = np.minimum(width, np.sqrt(area * aspect))
    cut_height = np.minimum(height, np.sqrt(area / aspect))
    left, top = plan.across * (width - cut_width), plan.down * (height - cut_height)
    return np.stack([left, top, left + cut_width, top + cut_height], axis=1)


def snapped(shape: tuple[int, int], patch: int) -> tuple[int, int]:
    """The multiples of the patch nearest to two sides."""
    height, width = (max(1, int(side / patch + 0.5)) * patch for side in shape)
    return height, width


@functools.lru_cache(maxsize=2)
def _order(a_round: int, pictures: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, a_round]).permutation(pictures)

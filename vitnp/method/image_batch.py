"""The image level of the photographs of a batch, on a GPU: one upload, no copy back before the masks.

:func:`vitnp.kernels.reference.image_levels` defines what is computed: the method of :mod:`vitnp.method.image_level`,
with the labels of the CPU except for ties.

Random numbers. How many a start of k-means++ takes depends on K alone, so the host draws them beforehand, with the
generator and in the order of the CPU, and uploads them with the batch: 1 + (K - 1) * (2 + ln K) for each start, 576
bytes for the default constants. A counter-based generator that both devices compute would save these bytes, but change
the CPU's answers, which a seed promises to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitnp import kernels
from vitnp.cached import cached_property
from vitnp.clustering.kmeans_plusplus import draw_numbers
from vitnp.kernels.reference import ImageLevelRule

if TYPE_CHECKING:
    from vitnp.method.image_level import ImageLevelConfig


class BatchAnswers:
    """Answers of the image level for the photographs of a batch, on the device.

    Attributes
    ----------
    soft, hard : list of (N,) float32
        See :func:`vitnp.method.image_level.image_level`; 0 for a photograph with values that are not finite.
    """

    def __init__(self, soft: list[np.ndarray], hard: list[np.ndarray], facts: np.ndarray) -> None:
        self.soft, self.hard = soft, hard
        self._on_device = facts

    @cached_property
    def _facts(self) -> np.ndarray:
        """The facts of all photographs, read from the device once."""
        return kernels.to_host(self._on_device)

    def contrast_and_spread(self, index: int) -> tuple[float, float]:
        """Return what the confidence of a photograph is computed from; waits for the device.

        Raises
        ------
        ValueError
            If the photograph's keys are not finite.

        Returns
        -------
        contrast : float
            Mean of |2 * soft - 1|.
        spread : float
            1 minus the length of the mean of the keys, normalized to unit length.
        """
        contrast, length, finite = self._facts[index].tolist()
        if not finite:
            raise ValueError("features must be finite, but contain NaN or infinity")
        return contrast, 1 - length

    def check_finite(self) -> None:
        """Check that the keys of all photographs are finite; waits for the device.

        Raises
        ------
        ValueError
        """
        for index in range(len(self.soft)):
            self.contrast_and_spread(index)


def image_levels(
    keys: Sequence[np.ndarray],
    attention: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int]],
    seeds: Sequence[tuple[int, ...]],
    config: ImageLevelConfig,
    *,
    device: str = "cuda",
    texture: bool = False,
) -> BatchAnswers:
    """Compute the image level of several photographs at once.

    Parameters
    ----------
    keys : sequence of (N, D) float
        Keys of the patches of each photograph, of any length; in host memory or on the device.
    attention : sequence of (N,) float
        CLS attention of the patches.
    grids : sequence of (int, int)
        Rows and columns of patches of each photograph; they may differ.
    seeds : sequence of tuple of int
        Seed of k-means for each photograph.
    config : ImageLevelConfig
    device : {"cuda", "cpu"}
        Where to compute; on "cpu" by the operation's definition, which is not what :func:`image_level` runs there.
    texture : bool
        As :func:`vitnp.method.texture.texture_image_level`.

    Returns
    -------
    BatchAnswers

    Examples
    --------
    >>> from vitnp.method.image_level import ImageLevelConfig
    >>> keys = np.repeat([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 3, axis=0)
    >>> attention = np.repeat([1.0, 4.0, 1.0], 3)
    >>> answers = image_levels([keys], [attention], [(3, 3)], [(0,)], ImageLevelConfig(clusters=(2,)), device="cpu")
    >>> answers.hard[0].reshape(3, 3)[1]
    array([1., 1., 1.], dtype=float32)
    """
    rule = ImageLevelRule(
        clusters=(2,) if texture else tuple(config.clusters),
        starts=config.starts,
        max_iterations=config.max_iterations,
        attention_percentile=config.attention_percentile,
        threshold=config.threshold,
        temperature=config.temperature,
        texture=texture,
    )
    sizes = [rows * columns for rows, columns in grids]
    draws = np.stack([_draws(seed, n_patches, rule) for seed, n_patches in zip(seeds, sizes)])
    levels = kernels.for_device(device).image_levels(
        _joined(keys, device), _joined(attention, device), grids, draws, rule
    )
    ends = np.cumsum(sizes).tolist()
    parts = [slice(end - size, end) for size, end in zip(sizes, ends)]
    return BatchAnswers([levels.soft[part] for part in parts], [levels.hard[part] for part in parts], levels.facts)


def _draws(seed: tuple[int, ...], n_patches: int, rule: ImageLevelRule) -> np.ndarray:
    """Draw the random numbers of all starts of a photograph, as :func:`vitnp.method.image_level.image_level` does."""
    draws = []
    for n_clusters in rule.clusters:
        rng = np.random.default_rng((*seed, n_clusters))
        draws += [draw_numbers(rng, n_patches, n_clusters) for _ in range(rule.starts)]
    return np.concatenate(draws)


def _joined(arrays: Sequence[np.ndarray], device: str) -> np.ndarray:
    """Return the rows of several arrays as float32 on the device; those of host memory are copied there together."""
    if len({kernels.device_of(array) for array in arrays}) > 1:
        arrays = [kernels.to_device(array, device) for array in arrays]
    xp = kernels.array_module(arrays[0])
    whole = arrays[0] if len(arrays) == 1 else xp.concatenate(list(arrays))
    return kernels.to_device(whole.astype(np.float32, copy=False), device)

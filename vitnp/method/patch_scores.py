"""Foreground of the patches of one photograph: its image level, and the levels of a collection combined with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from vitnp import kernels
from vitnp.cached import cached_property
from vitnp.features.record import FeatureRecord, unit_rows
from vitnp.method import texture
from vitnp.method.cleaning import clean
from vitnp.method.collection import Collection
from vitnp.method.confidence import collection_confidence, confidence_of, image_confidence
from vitnp.method.image_batch import image_levels
from vitnp.method.image_level import ImageLevelConfig, image_level
from vitnp.method.readout import readout_targets


@dataclasses.dataclass(frozen=True, eq=False)
class ImageAnswer:
    """Result of the image level for one photograph, on the network's device.

    Attributes
    ----------
    soft, hard : (N,) float32
        See :func:`vitnp.method.image_level.image_level`.
    find_confidence : callable
        Returns the confidence; on a GPU it waits for the answer.
    """

    soft: np.ndarray
    hard: np.ndarray
    find_confidence: Callable[[], float]

    @cached_property
    def confidence(self) -> float:
        """See :func:`vitnp.method.confidence.image_confidence`."""
        return self.find_confidence()


def judge_image(
    features: FeatureRecord,
    device: str,
    seed: int,
    collection: Collection | None = None,
    config: ImageLevelConfig | None = None,
    *,
    domain: str = "photo",
) -> ImageAnswer:
    """Compute the image level of a photograph and its confidence, from its own patches alone."""
    (answer,) = judge_images([features], device, seed, collection, config, domain=domain)
    return answer


def judge_images(
    features: Sequence[FeatureRecord],
    device: str,
    seed: int,
    collection: Collection | None = None,
    config: ImageLevelConfig | None = None,
    *,
    domain: str = "photo",
) -> list[ImageAnswer]:
    """Compute the image level of several photographs: on a GPU together, with the same results as one by one.

    Parameters
    ----------
    features : sequence of FeatureRecord
        Their grids may differ.
    device : str
        Device of the network.
    seed : int
    collection : Collection, optional
        Collection whose constants apply.
    config : ImageLevelConfig, optional
        Constants, by default those of the collection.
    domain : {"photo", "texture"}

    Raises
    ------
    ValueError
        If keys are not finite; on a GPU when the confidence is read.
    """
    if config is None:
        config = ImageLevelConfig() if collection is None else collection.image_level
    if device == "cpu":
        return [_judge_on_cpu(one, seed, config, domain) for one in features]
    answers = image_levels(
        [one.keys for one in features],
        [one.attention for one in features],
        [one.grid for one in features],
        [(seed, one.digest) for one in features],
        config,
        device=device,
        texture=domain != "photo",
    )

    def confidence(index: int) -> float:
        return confidence_of(*answers.contrast_and_spread(index))

    return [
        ImageAnswer(soft, hard, functools.partial(confidence, index))
        for index, (soft, hard) in enumerate(zip(answers.soft, answers.hard))
    ]


def _judge_on_cpu(features: FeatureRecord, seed: int, config: ImageLevelConfig, domain: str) -> ImageAnswer:
    keys = unit_rows(kernels.to_host(features.keys))
    if domain != "photo":
        soft, hard = texture.texture_image_level(keys, (seed, features.digest), config)
    else:
        soft, hard = image_level(keys, features.attention, features.grid, (seed, features.digest), config)
    confidence = image_confidence(soft, keys)
    return ImageAnswer(soft, hard, lambda: confidence)


@dataclasses.dataclass(frozen=True, eq=False)
class PatchScores:
    """Foreground of the patches of one photograph, on the network's device.

    Attributes
    ----------
    score : (rows, columns) float32
        Answers of the levels, combined; and cleaned, but for those of :func:`combine_patches`.
    find_confidence : callable
        Returns the confidence; on a GPU it waits for the scores.
    levels : tuple of (N,) float32, optional
        With a collection: the answer of each level.
    category : int, optional
        With a collection: category of the photograph.
    """

    score: np.ndarray
    find_confidence: Callable[[], float]
    levels: tuple[np.ndarray, ...] | None = None
    category: int | None = None

    @cached_property
    def confidence(self) -> float:
        """See :mod:`vitnp.method.confidence`."""
        return self.find_confidence()

    def from_pixels(self, soft: np.ndarray, confidence: float) -> PatchScores:
        """Return the scores of a soft map (height, width) uint16 that was found without the levels: its patch means."""
        means = readout_targets(soft, self.score.shape, sharpness=1.0).reshape(self.score.shape)
        score = kernels.to_device(means, kernels.device_of(self.score))
        return dataclasses.replace(self, score=score, find_confidence=lambda: confidence, levels=None)


def score_patches(
    features: FeatureRecord,
    answer: ImageAnswer,
    device: str,
    collection: Collection | None = None,
    category: int | None = None,
    *,
    domain: str = "photo",
) -> PatchScores:
    """Combine the levels of a photograph, and clean their score.

    Parameters
    ----------
    features, answer, collection, category
        As for :func:`vitnp.from_features.segment_features`.
    device : str
        Device of the network.
    domain : {"photo", "texture", "lines"}
        Decides the cleaning where there is no collection.
    """
    return clean_patches(combine_patches(features, answer, device, collection, category), collection, domain=domain)


def combine_patches(
    features: FeatureRecord,
    answer: ImageAnswer,
    device: str,
    collection: Collection | None = None,
    category: int | None = None,
) -> PatchScores:
    """Combine the levels of a photograph, without cleaning; parameters as for :func:`score_patches`."""
    if collection is None:
        return PatchScores(answer.soft.reshape(features.grid), lambda: answer.confidence)
    category = collection.category_of(features.cls) if category is None else category
    keys = unit_rows(kernels.to_device(features.keys, device))
    levels = collection.levels(keys, (answer.soft, answer.hard), category)
    score = collection.combine(levels)
    confidence = functools.partial(collection_confidence, score, levels)
    return PatchScores(score.reshape(features.grid), confidence, levels, category)


def clean_batch(
    patches: Sequence[PatchScores], collection: Collection | None, *, domain: str = "photo"
) -> list[PatchScores]:
    """Return the same of several photographs as :func:`clean_patches`: on a GPU those of one grid together."""
    shapes = {one.score.shape for one in patches}
    if len(patches) == 1 or len(shapes) > 1 or kernels.device_of(patches[0].score) == "cpu":
        return [clean_patches(one, collection, domain=domain) for one in patches]
    scores = kernels.array_module(patches[0].score).stack([one.score for one in patches])
    cleaned = clean_patches(dataclasses.replace(patches[0], score=scores), collection, domain=domain).score
    return [dataclasses.replace(one, score=score) for one, score in zip(patches, cleaned)]


def clean_patches(patches: PatchScores, collection: Collection | None, *, domain: str = "photo") -> PatchScores:
    """Return the same with the score cleaned, by the collection's rule if there is one, else by that of the domain."""
    config = texture.default_cleaning(domain) if collection is None else collection.cleaning
    return dataclasses.replace(patches, score=clean(patches.score, config))

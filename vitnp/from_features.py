"""From the features of photographs to their masks: of one, and of a batch, whose photographs are refined together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitnp import kernels
from vitnp.features.record import FeatureRecord
from vitnp.io.decode import DecodedImage
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.masks.alpha import opaque_part
from vitnp.method.collection import Collection
from vitnp.method.instances import find_instances, keep_objects
from vitnp.method.lines import find_lines
from vitnp.method.patch_scores import ImageAnswer, PatchScores, clean_batch, combine_patches
from vitnp.method.texture import smaller_side
from vitnp.refine.batch import refine_batch
from vitnp.refine.refine import stretch
from vitnp.result import HALF, MIN_SHARE, Segmentation
from vitnp.vit.model import ViT


def segment_features(
    image: DecodedImage,
    features: FeatureRecord,
    answer: ImageAnswer,
    parameters: Mapping[str, Any],
    clock: Stopwatch,
    vit: ViT,
    collection: Collection | None = None,
    category: int | None = None,
) -> Segmentation:
    """Make the mask of a photograph from its features.

    Single photographs, batches and collections all use this function.

    Parameters
    ----------
    image : DecodedImage
    features : FeatureRecord
    answer : ImageAnswer
    parameters : mapping
        See :func:`vitnp.method.parameters.run_parameters`.
    clock : Stopwatch
        Records the laps "cluster" and "refine".
    vit : ViT
    collection : Collection, optional
        Collection whose data set and category levels join the image level, and whose classes are applied.
    category : int, optional
        Category of the photograph in the collection; by default the one with the nearest CLS center.

    Returns
    -------
    Segmentation
    """
    combined = combine_patches(features, answer, vit.device, collection, category)
    ((patches, lines),) = _scored([image], [combined], parameters, collection)
    clock.lap("cluster")
    return segment_patches(image, features, patches, parameters, clock, vit, collection, lines)


def segment_batch(
    images: Sequence[DecodedImage],
    features: Sequence[FeatureRecord],
    answers: Sequence[ImageAnswer],
    parameters: Mapping[str, Any],
    clocks: Sequence[Stopwatch],
    vit: ViT,
    collection: Collection | None = None,
) -> list[Segmentation]:
    """Make the masks of several photographs: on a GPU those of one size are refined together.

    Arguments are those of :func:`segment_features` for each photograph, and so is the result.
    """
    together = Stopwatch(vit.device, shared_by=len(images))
    combined = [combine_patches(*one, vit.device, collection) for one in zip(features, answers)]
    scored = _scored(images, combined, parameters, collection)
    together.lap("cluster")
    maps = [lines for _, lines in scored]
    wanted = [
        index for index, (patches, lines) in enumerate(scored) if lines is None and _is_confident(patches, parameters)
    ]
    patches_of, images_of = [scored[index][0] for index in wanted], [images[index] for index in wanted]
    for index, refined in zip(wanted, _refined(patches_of, images_of, parameters, collection)):
        maps[index] = refined
    together.lap("refine")
    results = []
    for image, record, (patches, _), soft, clock in zip(images, features, scored, maps, clocks):
        clock.include(together)
        results.append(segment_patches(image, record, patches, parameters, clock, vit, collection, soft))
    return results


def _scored(
    images: Sequence[DecodedImage],
    combined: Sequence[PatchScores],
    parameters: Mapping[str, Any],
    collection: Collection | None,
) -> list[tuple[PatchScores, np.ndarray | None]]:
    """Return the cleaned scores of photographs' patches; and their soft maps, if these are found without the scores."""
    domain = str(parameters.get("domain", "photo"))
    cleaned = clean_batch(combined, collection, domain=domain)
    if domain != "lines":
        return [(patches, None) for patches in cleaned]
    rule = None if collection is None else collection.lines
    found = [find_lines(image.rgb, rule) for image in images]
    return [(patches.from_pixels(lines, sure), lines) for patches, (lines, sure) in zip(cleaned, found)]


def segment_patches(
    image: DecodedImage,
    features: FeatureRecord,
    patches: PatchScores,
    parameters: Mapping[str, Any],
    clock: Stopwatch,
    vit: ViT,
    collection: Collection | None = None,
    refined: np.ndarray | None = None,
) -> Segmentation:
    """Make the mask of a photograph from the cleaned scores of its patches; arguments as for :func:`segment_features`.

    The soft map is `refined`, (height, width) uint16, if that is known already. The stopwatch records the lap "refine".
    """
    soft = np.zeros(image.rgb.shape[:2], np.uint16)
    if _is_confident(patches, parameters):
        if refined is None:
            (refined,) = _refined([patches], [image], parameters, collection)
        if image.opacity is not None:
            refined = opaque_part(refined, image.opacity)
        if np.count_nonzero(refined >= HALF) >= MIN_SHARE * refined.size:  # fewer pixels are no object
            soft = refined
    clock.lap("refine")
    result = Segmentation(
        image=image.rgb,
        soft=soft,
        score=kernels.to_host(patches.score),
        keys=np.asarray(kernels.to_host(features.keys), np.float32).reshape(*features.grid, -1),
        confidence=patches.confidence,
        parameters=parameters,
        photograph=features.photograph,
        seconds=clock.seconds,
        capped=features.capped,
        category=patches.category,
        levels=None if patches.levels is None else tuple(map(kernels.to_host, patches.levels)),
        device=kernels.name_of(kernels.device_of(patches.score)),
        profile=image.profile,
        opacity=image.opacity,
        metadata=image.metadata,
    )
    if parameters.get("instances"):
        instances = find_instances(
            result.soft, result.keys, result.image, result.confidence, n_objects=parameters["objects"]
        )
        result = dataclasses.replace(result, soft=keep_objects(result.soft, instances.labels), instances=instances)
        clock.lap("instances")
    if collection is None or collection.prototypes is None:
        return result
    return dataclasses.replace(result, labels=collection.labels(vit, features, result.mask, result.instances))


def _is_confident(patches: PatchScores, parameters: Mapping[str, Any]) -> bool:
    """Return whether a photograph gets a mask."""
    # Without a limit nothing waits for the confidence, which on a GPU would be a copy in the middle of the work.
    least = parameters["min_confidence"]
    return not least or patches.confidence >= least


def _refined(
    patches: Sequence[PatchScores],
    images: Sequence[DecodedImage],
    parameters: Mapping[str, Any],
    collection: Collection | None,
) -> list[np.ndarray]:
    """Return the soft maps of patch scores, (height, width) uint16."""
    maps = refine_batch([one.score for one in patches], [one.rgb for one in images], method=parameters["refine"])
    maps = maps if collection is None else [stretch(soft) for soft in maps]
    return [smaller_side(soft) for soft in maps] if parameters.get("domain") == "texture" else maps

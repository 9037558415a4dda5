"""One photograph, start to end: pixels, keys, foreground score, a mask with edges, and what is made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vitnp import __version__, kernels
from vitnp.errors import UsageError
from vitnp.features.extract import Features, extract_batch, prepare
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.features.stream import Decoded, stored_batch
from vitnp.io import decode, preprocess
from vitnp.kernels.threads import blas
from vitnp.method import agreement, cleaning, image_level
from vitnp.method import confidence as confidence_
from vitnp.method.collection import Collection
from vitnp.options import FACETS
from vitnp.refine import refine as refinement
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from PIL import Image
from vitnp.io.source import fingerprint
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.result import Segmentation

# What a GPU does, where there is one; the host decodes and writes.
DEVICE_STAGES = ("network", "cluster", "refine")


def run_parameters(
    vit: ViT,
    *,
    size: int | None = None,
    facet: str = "key",
    layer: int = -1,
    stride: int | None = None,
    refine: str = "solver",
    seed: int = 0,
    max_tokens: int = 4096,
    min_confidence: float = 0.0,
    collection: Collection | None = None,
) -> Mapping[str, object]:
    """Everything that a photograph's answer depends on, for the record and for telling whether a result is still good.

    Parameters
    ----------
    vit : ViT
    size, facet, layer, stride, refine, seed, max_tokens, min_confidence, collection
        As for :func:`segment_image`.

    Raises
    ------
    UsageError
        For an option that makes no sense, or a collection that was fitted on other features.
    """
    config = vit.config
    if refine not in refinement.METHODS:
        raise UsageError(f"there is no refinement {refine!r}; choose one of {', '.join(refinement.METHODS)}")
    if facet not in FACETS:
        raise UsageError(f"there is no facet {facet!r}; choose one of {', '.join(FACETS)}")
    whole = {"size": size, "layer": layer, "stride": stride, "seed": seed, "max_tokens": max_tokens}
    for name, value in whole.items():
        optional = name in ("size", "stride") and value is None
        if not optional and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
            raise UsageError(f"{name} is {value!r}; choose a whole number")
    if not -config.depth <= layer < config.depth:
        raise UsageError(
            f"layer {layer} is out of range; this network has blocks 0 to {config.depth - 1} (or -{config.depth} to -1)"
        )
    if stride is not None and (not 0 < stride <= config.patch or config.patch % stride):
        raise UsageError(f"stride {stride} doesn't fit; choose a divisor of the patch, {config.patch}")
    if seed < 0:
        raise UsageError(f"the seed is {seed}; choose 0 or more")
    if max_tokens < 1:
        raise UsageError(f"the token limit is {max_tokens}; choose 1 or more")
    if not 0 <= min_confidence <= 1:
        raise UsageError(f"the least confidence is {min_confidence}; choose a number from 0 to 1")
    parameters = {
        "version": __version__,
        "model": vit.name,
        "sha256": vit.sha256,
        "precision": vit.numerics,
        "heads": config.heads,
        "pos_embed": config.pos_embed,
        "mean": list(config.mean),
        "std": list(config.std),
        "size": preprocess.short_side_of(size, config.patch),
        "facet": facet,
        "layer": int(layer) % config.depth,
        "stride": config.patch if stride is None else int(stride),
        "refine": refine,
        "seed": int(seed),
        "max_tokens": int(max_tokens),
        "min_confidence": min_confidence,
    }
    if collection is not None:
        reason = collection.mismatch(parameters)
        if reason:
            raise UsageError(
                f"the collection doesn't fit: {reason}; use the options it was fitted with, or fit another"
            )
        parameters["collection"] = collection.digest
    return MappingProxyType(parameters)


def segment_image(
    image: str | os.PathLike[str] | Image.Image | np.ndarray,
    vit: ViT | None = None,
    *,
    size: int | None = None,
    facet: str = "key",
    layer: int = -1,
    stride: int | None = None,
    refine: str = "solver",
    seed: int = 0,
    max_tokens: int = 4096,
    max_pixels: int = decode.MAX_PIXELS,
    min_confidence: float = 0.0,
    collection: Collection | str | os.PathLike[str] | None = "auto",
) -> Segmentation:
    """Segment one photograph into foreground and background.

    Parameters
    ----------
    image : path, PIL image, or (height, width, 3) uint8 array
    vit : ViT, optional
        From :func:`vitnp.load_vit`; by default the built-in checkpoint. ``vit.to(device="cuda")`` has it all done by a GPU.
    size : int, optional
        Short side in pixels at which the network sees the photograph; by default 320.
    facet : {"key", "query", "value", "token"}
        Feature to cluster.
    layer : int
        Block to read; negative numbers count from the last.
    stride : int, optional
        Pixels between patches, a divisor of the patch; by default the patch.
    refine : {"solver", "crf", "guided", "none"}
        Bilateral solver, dense CRF, guided filter, or plain bilinear enlargement.
    seed : int
        Same seed and photograph, same answer, bit for bit.
    max_tokens : int
        Cap of the patch grid.
    max_pixels : int
        Larger photographs are refused before they are decoded.
    min_confidence : float
        A photograph with less confidence gets an empty mask.
    collection : "auto", None or "none", path or Collection
        A fitted one (:class:`vitnp.Segmenter`), whose data set and category levels, and classes, then apply to this photograph. By
        default that of the built-in checkpoint, where checkpoint, facet, layer, stride and size are those it was fitted with, else
        none; without one there is the image level alone.

    Returns
    -------
    Segmentation

    Raises
    ------
    ImageError
        When the photograph can't be read.
    CheckpointError
        When the built-in checkpoint or the collection can't be read.
    DeviceError
        When a GPU's memory doesn't hold the photograph.
    UsageError
        For an option out of range, or a collection that was fitted on other features.

    Notes
    -----
    The levels of arXiv 2311.18628 as vitnp understands them, see :mod:`vitnp.method.image_level`, then :mod:`vitnp.refine.refine`.

    Examples
    --------
    >>> result = vitnp.segment_image("cat.jpg")             # doctest: +SKIP
    >>> result.mask.mean(), result.confidence               # doctest: +SKIP
    (0.31, 0.62)
    """
    vit = default_vit() if vit is None else vit
    options = {"size": size, "facet": facet, "layer": layer, "stride": stride, "max_tokens": max_tokens}
    method = ImagePipeline.of(
        vit, **options, refine=refine, seed=seed, min_confidence=min_confidence, collection=collection
    )
    clock = Stopwatch(vit.device)
    with blas.one_blas_thread(), refused_beyond_memory(vit.device):
        rgb = decode.read_image(image, max_pixels=max_pixels)
        clock.lap("decode")
        photograph = fingerprint(image, rgb)
        (features,) = method.features([method.preprocess(rgb, photograph)])
        clock.lap("network")
        return method.segment(rgb, features, photograph, clock)


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePipeline:
    """How photographs are judged, each by itself: all that is the same for every one of them. Make one with :meth:`of`.

    Attributes
    ----------
    vit : ViT
    collection : Collection or None
    parameters : mapping
        From :func:`run_parameters`.
    identity : FeatureSpec or None
        Of the features that a collection reads.
    """

    vit: ViT
    collection: Collection | None
    parameters: Mapping[str, object]
    identity: FeatureSpec | None

    @classmethod
    def of(
        cls, vit: ViT, *, collection: Collection | str | os.PathLike[str] | None = "auto", **options
    ) -> ImagePipeline:
        """The method with some options of :func:`segment_image`; it raises the same errors."""
        which = {
            name: value for name, value in options.items() if name in ("size", "facet", "layer", "stride", "max_tokens")
        }
        collection, _ = resolve_collection(collection, vit, **which)
        parameters = run_parameters(vit, **options, collection=collection)
        if collection is None:
            return cls(vit, None, parameters, None)
        return cls(vit, collection, parameters, FeatureSpec.of(vit, **which, regions=collection.prototypes is not None))

    def preprocess(self, rgb: np.ndarray, photograph: str) -> Decoded:
        """A photograph (height, width, 3) uint8 of such a :func:`fingerprint` at the size for the network, on its device."""
        p = self.parameters
        scaled = prepare(rgb, self.vit, size=p["size"], stride=p["stride"], max_tokens=p["max_tokens"])
        return Decoded(0, photograph, rgb.shape[:2], scaled)

    def features(self, group: Sequence[Decoded]) -> list[Features] | list[FeatureRecord]:
        """What the network says of photographs that have become equally large, in one pass."""
        if self.identity is not None:
            return stored_batch(group, self.vit, self.identity, lambda array: array)
        p = self.parameters
        return extract_batch(
            [one.prepared for one in group], self.vit, facet=p["facet"], layer=p["layer"], stride=p["stride"]
        )

    def segment(
        self, rgb: np.ndarray, features: Features | FeatureRecord, photograph: str, clock: Stopwatch
    ) -> Segmentation:
        """The result for a photograph of such features and such a :func:`fingerprint`."""
        collection, unit = self.collection, features.unit
        constants = image_level.ImageLevelConfig() if collection is None else collection.image_level
        seed = (self.parameters["seed"], features.digest)
        soft, hard = image_level.image_level(unit, features.attention, features.grid, seed, constants)
        score, category, levels, cleaner = soft, None, None, cleaning.CleaningConfig()
        if collection is not None:
            category = collection.category_of(features.cls)
            levels = collection.levels(unit, (soft, hard), category)
            score, cleaner = (
                agreement.combine_levels(levels, str(collection.parameters["consistency"])),
                collection.cleaning,
            )
        score = cleaning.clean(score.reshape(features.grid), cleaner)
        confidence = confidence_.confidence(soft, unit)
        clock.lap("cluster")
        result = compose(rgb, features, score, confidence, self.parameters, photograph, clock, category, levels)
        if collection is not None and collection.prototypes is not None:
            result = dataclasses.replace(result, labels=collection.labels(self.vit, features, result.mask))
        return result


def compose(
    rgb: np.ndarray,
    features: Features | FeatureRecord,
    score: np.ndarray,
    confidence: float,
    parameters: Mapping[str, object],
    photograph: str,
    clock: Stopwatch,
    category: int | None = None,
    levels: tuple[np.ndarray, ...] | None = None,
) -> Segmentation:
    """A photograph's result, once the score of its patches is known: refinement to the full size.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
    features : Features or FeatureRecord
    score : (rows, columns) float32
        Cleaned, 0..1; where it lives is where the photograph is refined.
    confidence : float
        Below ``parameters["min_confidence"]`` the mask is empty.
    parameters : mapping
        From :func:`run_parameters`.
    photograph : str
        From :func:`fingerprint`.
    clock : Stopwatch
        Gets the lap "refine".
    category, levels
        For the record, see :class:`Segmentation`.

    Returns
    -------
    Segmentation
    """
    if confidence < parameters["min_confidence"]:
        soft = np.zeros(rgb.shape[:2], np.uint16)
    else:
        soft = kernels.to_host(refinement.refine(score, rgb, method=str(parameters["refine"])))
    clock.lap("refine")
    device, score = kernels.name_of(kernels.device_of(score)), kernels.to_host(score)
    keys = np.asarray(kernels.to_host(features.keys), np.float32).reshape(*features.grid, -1)
    levels = None if levels is None else tuple(map(kernels.to_host, levels))
    return Segmentation(
        rgb,
        soft,
        score,
        keys,
        confidence,
        parameters,
        photograph,
        clock.seconds,
        features.capped,
        category,
        levels=levels,
        device=device,
    )


@functools.lru_cache(maxsize=1)
def default_vit() -> ViT:
    """The built-in checkpoint, read once."""
    from vitnp.checkpoints.load import load_vit

    return load_vit("auto")


@functools.lru_cache(maxsize=1)
def default_collection() -> Collection:
    """What came of fitting many photographs with the built-in checkpoint, read once."""
    from vitnp.checkpoints.registry import BUILT_IN, collection_path

    return Collection.load(collection_path(BUILT_IN))


def resolve_collection(
    wanted: Collection | str | os.PathLike[str] | None, vit: ViT, **options
) -> tuple[Collection | None, str | None]:
    """The fitted collection that photographs, each by itself, are judged by.

    Parameters
    ----------
    wanted : "auto", None or "none", path or Collection
        As for :func:`segment_image`.
    vit : ViT
    **options
        Of :func:`run_parameters`.

    Returns
    -------
    collection : Collection or None
    reason : str or None
        For "auto", why the built-in collection doesn't apply: half a sentence.

    Raises
    ------
    CheckpointError
        When it can't be read.
    """
    if wanted is None or wanted == "none":
        return None, None
    if wanted == "auto":
        reason = default_collection().mismatch(run_parameters(vit, **options))
        return (None, reason) if reason else (default_collection(), None)
    return (wanted if isinstance(wanted, Collection) else Collection.load(wanted)), None


@contextlib.contextmanager
def refused_beyond_memory(device: str) -> Iterator[None]:
    """A photograph that a GPU's memory doesn't hold is said to be that.

    Raises
    ------
    DeviceError
    """
    try:
        yield
    except MemoryError:
        if device == "cpu":
            raise
        raise kernels.for_device(device).out_of_memory("this photograph") from None

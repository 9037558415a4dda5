"""The method on one page: decode, extract features, find the foreground at each level, combine, clean, refine.

An independent re-implementation of "A Lightweight Clustering Framework for Unsupervised Semantic Segmentation"
(arXiv 2311.18628). Every step is one call below; its module explains it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitnp import kernels, options
from vitnp.features.extract import NetworkInput, default_spec, extract_batch, prepare
from vitnp.features.record import FeatureRecord
from vitnp.features.spec import FeatureSpec
from vitnp.from_features import segment_batch, segment_features
from vitnp.io.decode import DecodedImage, decode_image
from vitnp.io.inputs import as_photograph
from vitnp.io.source import fingerprint
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import blas
from vitnp.method.collection import Collection
from vitnp.method.defaults import resolve_collection, resolve_vit
from vitnp.method.parameters import run_parameters
from vitnp.method.patch_scores import ImageAnswer, judge_images
from vitnp.options import Settings
from vitnp.result import Segmentation
from vitnp.vit.model import ViT

if TYPE_CHECKING:
    from vitnp.io.inputs import Photo

_LOG = logging.getLogger("vitnp")

# Stages that run on the device of the network, which may be a GPU. All others run on the CPU.
DEVICE_STAGES = ("network", "cluster", "refine")


def segment_image(
    image: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    short_side: int | None = None,
    facet: str = "key",
    layer: int | None = None,
    stride: int | None = None,
    refine: str | None = None,
    seed: int = 0,
    max_tokens: int = options.MAX_TOKENS,
    max_pixels: int = options.MAX_PIXELS,
    min_confidence: float = 0.0,
    alpha: str = "background",
    domain: str = "photo",
    instances: bool = False,
    objects: int | None = None,
    collection: Collection | str | os.PathLike[str] | None = "auto",
) -> Segmentation:
    """Segment one photograph into foreground and background.

    Parameters
    ----------
    image : path, file object, bytes, PIL image, (height, width, 3) uint8 array, or row of a data set
        See :func:`vitnp.io.inputs.as_photograph`.
    vit : ViT, name or path, optional
        A network, or what :func:`vitnp.load_vit` takes; the built-in network by default. With ``vit.to(device="cuda")``
        everything runs on a GPU.
    short_side : int, optional
        Short side of the network's input in pixels; by default that of the checkpoint, 320 for most.
    facet : {"key", "key_rotated", "query", "value", "token"}
        Feature to cluster.
    layer : int, optional
        Block to read; negative numbers count from the last. By default the last one, for textures and lines the middle
        one.
    stride : int, optional
        Pixels between patches, a divisor of the patch size; the patch size by default.
    refine : {"solver", "crf", "guided", "color", "none"}, optional
        Bilateral solver, dense CRF, guided filter, a division by color, or bilinear enlargement alone. By default the
        solver, for textures the division by color. Lines have none.
    seed : int
        Seed of k-means. The same seed and photograph give the same result, bit for bit.
    max_tokens : int
        Maximum number of patches; a larger grid is made coarser.
    max_pixels : int
        Larger photographs are refused before they are decoded.
    min_confidence : float
        A photograph below this confidence gets an empty mask.
    alpha : {"background", "mask", "ignore"}
        What transparent parts of a picture are: a white background; that, and never foreground; or nothing, with the
        colors that the file stores beneath.
    domain : {"photo", "texture", "lines"}
        Photographs of objects; pictures of many small parts on an even ground, such as cells or seedlings, whose
        foreground is the smaller of two clusters; or of lines thinner than a patch, such as cracks or membranes, which
        are found in pixels.
    instances : bool
        Separate the objects of the mask; the result has them as ``objects``, the most confident first.
    objects : int, optional
        Keep only so many objects, 1 to 100, the first of the ranking, also in the mask; implies `instances`.
    collection : "auto", None or "none", path or Collection
        A collection fitted by :class:`vitnp.Segmenter`, whose data set and category levels, and classes, are applied to
        the photograph. "auto" takes the collection of the built-in network if network, facet, layer and stride are
        those it was fitted with, and the short side is near, and else none. Without a collection the image level is
        used alone.

    Returns
    -------
    Segmentation

    Raises
    ------
    ImageError
        If the photograph cannot be read.
    CheckpointError
        If the built-in checkpoint or the collection cannot be read.
    DeviceError
        If the GPU's memory is too small for the photograph.
    UsageError
        If a value is not allowed, or the collection was fitted on other features.

    Examples
    --------
    >>> result = vitnp.segment_image("cat.jpg")             # doctest: +SKIP
    >>> result.mask.mean(), result.confidence               # doctest: +SKIP
    (0.31, 0.62)
    """
    settings = Settings(
        short_side,
        facet,
        layer,
        stride,
        max_tokens,
        max_pixels,
        refine,
        seed,
        min_confidence,
        alpha,
        domain,
        instances,
        objects,
    )
    return ImagePipeline.create(resolve_vit(vit), settings, collection)(as_photograph(image))


@dataclasses.dataclass(frozen=True, eq=False)
class ImagePipeline:
    """Segment photographs one by one with the same network, settings and collection; see :meth:`create`.

    Attributes
    ----------
    vit : ViT
    settings : Settings
    collection : Collection or None
    spec : FeatureSpec
        Features to extract.
    parameters : mapping
        See :func:`vitnp.method.parameters.run_parameters`.
    """

    vit: ViT
    settings: Settings
    collection: Collection | None
    spec: FeatureSpec
    parameters: Mapping[str, object]

    @classmethod
    def create(
        cls, vit: ViT, settings: Settings, collection: Collection | str | os.PathLike[str] | None = "auto"
    ) -> ImagePipeline:
        """Return the pipeline for a network, settings and a collection; arguments and errors as in segment_image."""
        collection, _ = resolve_collection(collection, vit, settings)
        parameters = run_parameters(vit, settings, collection)
        if collection is not None and parameters["size"] != collection.parameters["size"]:
            _LOG.info(
                "the collection was fitted at a short side of %s pixels, and is applied at %s",
                collection.parameters["size"], parameters["size"],
            )  # fmt: skip
        if collection is None:
            spec = default_spec(vit, settings)
        else:
            spec = FeatureSpec.of(vit, **settings.of_features, regions=collection.prototypes is not None)
        return cls(vit, settings, collection, spec, parameters)

    def __call__(self, image: Photo) -> Segmentation:
        """Segment one photograph."""
        clock = Stopwatch(self.vit.device)
        with blas.one_blas_thread(), image_memory_error(self.vit.device):
            decoded = self.decode(image)
            clock.lap("decode")
            (features,) = self.extract([self.preprocess(decoded, fingerprint(image, decoded))])
            clock.lap("network")
            return self.segment(decoded, features, clock)

    def decode(self, image: Photo) -> DecodedImage:
        """Decode a photograph, and log what a user should know about how it was read."""
        decoded = decode_image(image, max_pixels=self.settings.max_pixels, alpha=self.settings.alpha)
        decoded.log()
        return decoded

    def preprocess(self, image: DecodedImage, photograph: str) -> NetworkInput:
        """Scale a photograph with a given fingerprint to the network's input size, and convert its colors to sRGB."""
        return prepare(image.rgb, self.vit, self.spec, photograph, profile=image.profile)

    def extract(self, inputs: Sequence[NetworkInput]) -> list[FeatureRecord]:
        """Return the features of photographs of the same input size, computed in one forward pass."""
        return extract_batch(inputs, self.vit, self.spec, with_cls=self.collection is not None)

    def judge(self, features: Sequence[FeatureRecord]) -> list[ImageAnswer]:
        """Return the image level of photographs with features from :meth:`extract`."""
        return judge_images(features, self.vit.device, self.settings.seed, self.collection, domain=self.settings.domain)

    def segment(
        self, image: DecodedImage, features: FeatureRecord, clock: Stopwatch, answer: ImageAnswer | None = None
    ) -> Segmentation:
        """Segment a photograph with features from :meth:`extract`; with its image level, if that is known already."""
        if answer is None:
            (answer,) = self.judge([features])
        return segment_features(image, features, answer, self.parameters, clock, self.vit, self.collection)

    def segment_batch(
        self,
        images: Sequence[DecodedImage],
        features: Sequence[FeatureRecord],
        answers: Sequence[ImageAnswer],
        clocks: Sequence[Stopwatch],
    ) -> list[Segmentation]:
        """Segment photographs with features and image level: on a GPU those of one size are refined together."""
        return segment_batch(images, features, answers, self.parameters, clocks, self.vit, self.collection)


@contextlib.contextmanager
def image_memory_error(device: str) -> Iterator[None]:
    """Turn a MemoryError of the GPU into a DeviceError that says what to do; one of the CPU is raised unchanged.

    Raises
    ------
    DeviceError
        If the GPU's memory does not hold the photograph.
    """
    try:
        yield
    except MemoryError:
        if device == "cpu":
            raise
        raise kernels.for_device(device).out_of_memory("this photograph") from None

"""One photograph, start to end: pixels, keys, foreground score, a mask with edges, and what is made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import numbers
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vitnp import __version__, cleaning, images, kernels, multilevel, outputs, threads
from vitnp import refine as refinement
from vitnp.collection import Collection
from vitnp.errors import UsageError
from vitnp.features import Features, Identity, StoredFeatures
from vitnp.features.extract import extract_batch, prepare
from vitnp.features.stream import Decoded, stored_batch
from vitnp.labels import write_labels
from vitnp.vit import FACETS, ViT

if TYPE_CHECKING:
    from PIL import Image

# What a GPU does, where there is one; the host decodes and writes.
ON_THE_DEVICE = ("network", "cluster", "refine")

# Half of the 16-bit scale of the soft map: the mask is where it is reached.
HALF = 32768


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What vitnp found in a photograph.

    Attributes
    ----------
    image : (height, width, 3) uint8
        The photograph, upright.
    soft : (height, width) uint16
        Refined foreground map in 16-bit fixed point: 65535 is 1.
    score : (rows, columns) float32
        Foreground score of each patch, 0..1, after cleaning.
    keys : (rows, columns, D) float32
        Keys of the patches (or the facet that was asked for) as the network gives them.
    confidence : float
        How sure one may be that there is an object, 0..1.
    parameters : mapping
        Everything that the answer depends on beside the photograph.
    photograph : str
        Fingerprint of the file, or of the pixels where there was no file.
    seconds : mapping of str to float
        Time spent in each stage.
    capped : bool
        Whether the patch grid was made coarser to stay within the tokens allowed.
    category : int, optional
        Of a fitted collection's categories of similar photographs, the one this belongs to.
    labels : (height, width) uint8, optional
        With a collection that has classes: 0 for background, classes from 1.
    levels : tuple of (N,) float32, optional
        With a collection: what image, data set and category each said of the patches before they agreed, row by row.
    device : str
        Where everything between pixels and mask was computed: "cpu" or "cuda:0". All arrays are in the host's memory.
    """

    image: np.ndarray
    soft: np.ndarray
    score: np.ndarray
    keys: np.ndarray
    confidence: float
    parameters: Mapping[str, object]
    photograph: str
    seconds: Mapping[str, float]
    capped: bool
    category: int | None = None
    labels: np.ndarray | None = None
    levels: tuple[np.ndarray, ...] | None = None
    device: str = "cpu"

    @functools.cached_property
    def mask(self) -> np.ndarray:
        """(height, width) bool, True on the foreground."""
        return self.soft >= HALF

    @property
    def share(self) -> float:
        """Foreground's share of the photograph, 0..1."""
        return float(np.count_nonzero(self.mask) / self.mask.size)

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Bounding boxes of the mask's 8-connected parts, (x, y, width, height) in pixels, largest part first.

        Specks of less than a thousandth of the photograph are left out.
        """
        return [tuple(box[:4]) for box in outputs.bounding_boxes(self.mask, min_area_share=1e-3)]

    def overlay(self) -> Image.Image:
        """The photograph with the mask's outline and a tint."""
        from PIL import Image

        return Image.fromarray(outputs.overlay(self.image, self.mask))

    def cutout(self) -> Image.Image:
        """The photograph with the soft map as its alpha channel, RGBA."""
        from PIL import Image

        return Image.fromarray(outputs.cutout(self.image, self.soft))

    def save(self, stem: str | os.PathLike[str], which: Iterable[str] = ("mask", "overlay")) -> dict[str, Path]:
        """Write results to files beside each other.

        Parameters
        ----------
        stem : path
            What the names begin with: ``OUT/cat`` gives ``OUT/cat_mask.png`` and so on. Missing folders are made.
        which : iterable of str
            Among "mask" (0/255), "overlay", "cutout" (RGBA), "soft" (16-bit PNG), "score" and "keys" (patch grid, .npy) and
            "npz" (mask, score, metadata, and keys when they are named too).

        Returns
        -------
        dict of str to Path
            The files written; "labels" (a palette PNG) among them where there are classes.

        Raises
        ------
        UsageError
            For a kind of output that doesn't exist.
        OutputError
            When a file can't be written; nothing half-written is left behind.

        Examples
        --------
        >>> vitnp.segment_image("cat.jpg").save("out/cat", ["mask", "cutout"])      # doctest: +SKIP
        {'mask': PosixPath('out/cat_mask.png'), 'cutout': PosixPath('out/cat_cutout.png')}
        """
        which = tuple(which)
        paths = output_paths(stem, which)
        outputs.make_folder(Path(stem).parent)
        stamp = {"vitnp:parameters": outputs.parameters_hash(self.parameters), "vitnp:photograph": self.photograph}
        for kind in which:
            path = paths[kind]
            if kind == "npz":
                arrays = {"mask": self.mask, "score": self.score}
                if "keys" in which:
                    arrays["keys"] = self.keys
                outputs.write_npz(path, arrays, {**self.parameters, "confidence": self.confidence, **stamp})
            elif kind in ("score", "keys"):
                outputs.write_npy(path, getattr(self, kind), stamp)
            else:
                outputs.write_png(path, self._picture(kind), stamp)
        if self.labels is not None:
            paths["labels"] = labels_path(stem)
            write_labels(paths["labels"], self.labels, stamp)
        return paths

    def _picture(self, kind: str) -> np.ndarray:
        if kind == "overlay":
            return outputs.overlay(self.image, self.mask)
        if kind == "cutout":
            return outputs.cutout(self.image, self.soft)
        return self.mask if kind == "mask" else self.soft


def output_paths(stem: str | os.PathLike[str], which: Iterable[str]) -> dict[str, Path]:
    """Names of the files that :meth:`Segmentation.save` writes.

    Examples
    --------
    >>> output_paths("out/cat", ["mask"])["mask"].as_posix()
    'out/cat_mask.png'
    """
    unknown = [kind for kind in which if kind not in outputs.SUFFIXES]
    if unknown:
        raise UsageError(f"there is no output {', '.join(map(repr, unknown))}; choose among {', '.join(outputs.SUFFIXES)}")
    return {kind: Path(f"{os.fspath(stem)}{outputs.SUFFIXES[kind]}") for kind in which}


def labels_path(stem: str | os.PathLike[str]) -> Path:
    """Name of the file of classes.

    Examples
    --------
    >>> labels_path("out/cat").as_posix()
    'out/cat_labels.png'
    """
    return Path(f"{os.fspath(stem)}{outputs.LABELS_SUFFIX}")


def parameters_of(
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
        raise UsageError(f"layer {layer} is out of range; this network has blocks 0 to {config.depth - 1} (or -{config.depth} to -1)")
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
        "precision": vit.arithmetic,
        "heads": config.heads,
        "pos_embed": config.pos_embed,
        "mean": list(config.mean),
        "std": list(config.std),
        "size": images.short_side_of(size, config.patch),
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
            raise UsageError(f"the collection doesn't fit: {reason}; use the options it was fitted with, or fit another")
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
    max_pixels: int = images.MAX_PIXELS,
    min_confidence: float = 0.0,
    collection: Collection | str | os.PathLike[str] | None = "auto",
) -> Segmentation:
    """Segment one photograph into foreground and background.

    Parameters
    ----------
    image : path, PIL image, or (height, width, 3) uint8 array
    vit : ViT, optional
        From :func:`vitnp.load_vit`; by default the built-in checkpoint. ``vit.on("cuda")`` has it all done by a GPU.
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
    The levels of arXiv 2311.18628 as vitnp understands them, see :mod:`vitnp.multilevel`, then :mod:`vitnp.refine`.

    Examples
    --------
    >>> result = vitnp.segment_image("cat.jpg")             # doctest: +SKIP
    >>> result.mask.mean(), result.confidence               # doctest: +SKIP
    (0.31, 0.62)
    """
    vit = builtin() if vit is None else vit
    options = {"size": size, "facet": facet, "layer": layer, "stride": stride, "max_tokens": max_tokens}
    method = Method.of(vit, **options, refine=refine, seed=seed, min_confidence=min_confidence, collection=collection)
    clock = Stopwatch(vit.device)
    with threads.one_blas_thread(), refused_beyond_memory(vit.device):
        rgb = images.read_image(image, max_pixels=max_pixels)
        clock.lap("decode")
        photograph = fingerprint(image, rgb)
        (features,) = method.features([method.prepared(rgb, photograph)])
        clock.lap("network")
        return method.judged(rgb, features, photograph, clock)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """How photographs are judged, each by itself: all that is the same for every one of them. Make one with :meth:`of`.

    Attributes
    ----------
    vit : ViT
    collection : Collection or None
    parameters : mapping
        From :func:`parameters_of`.
    identity : Identity or None
        Of the features that a collection reads.
    """

    vit: ViT
    collection: Collection | None
    parameters: Mapping[str, object]
    identity: Identity | None

    @classmethod
    def of(cls, vit: ViT, *, collection: Collection | str | os.PathLike[str] | None = "auto", **options) -> Method:
        """The method with some options of :func:`segment_image`; it raises the same errors."""
        which = {name: value for name, value in options.items() if name in ("size", "facet", "layer", "stride", "max_tokens")}
        collection, _ = chosen_collection(collection, vit, **which)
        parameters = parameters_of(vit, **options, collection=collection)
        if collection is None:
            return cls(vit, None, parameters, None)
        return cls(vit, collection, parameters, Identity.of(vit, **which, regions=collection.prototypes is not None))

    def prepared(self, rgb: np.ndarray, photograph: str) -> Decoded:
        """A photograph (height, width, 3) uint8 of such a :func:`fingerprint` at the size for the network, on its device."""
        p = self.parameters
        scaled = prepare(rgb, self.vit, size=p["size"], stride=p["stride"], max_tokens=p["max_tokens"])
        return Decoded(0, photograph, rgb.shape[:2], scaled)

    def features(self, group: Sequence[Decoded]) -> list[Features] | list[StoredFeatures]:
        """What the network says of photographs that have become equally large, in one pass."""
        if self.identity is not None:
            return stored_batch(group, self.vit, self.identity, lambda array: array)
        p = self.parameters
        return extract_batch([one.prepared for one in group], self.vit, facet=p["facet"], layer=p["layer"], stride=p["stride"])

    def judged(self, rgb: np.ndarray, features: Features | StoredFeatures, photograph: str, clock: Stopwatch) -> Segmentation:
        """The result for a photograph of such features and such a :func:`fingerprint`."""
        collection, unit = self.collection, features.unit
        constants = multilevel.ImageLevel() if collection is None else collection.image_level
        seed = (self.parameters["seed"], features.digest)
        soft, hard = multilevel.image_level(unit, features.attention, features.grid, seed, constants)
        score, category, levels, cleaner = soft, None, None, cleaning.Cleaning()
        if collection is not None:
            category = collection.category_of(features.cls)
            levels = collection.levels(unit, (soft, hard), category)
            score, cleaner = multilevel.agree(levels, str(collection.parameters["consistency"])), collection.cleaning
        score = cleaning.clean(score.reshape(features.grid), cleaner)
        confidence = multilevel.confidence(soft, unit)
        clock.lap("cluster")
        result = compose(rgb, features, score, confidence, self.parameters, photograph, clock, category, levels)
        if collection is not None and collection.prototypes is not None:
            result = dataclasses.replace(result, labels=collection.labels(self.vit, features, result.mask))
        return result


def compose(
    rgb: np.ndarray,
    features: Features | StoredFeatures,
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
    features : Features or StoredFeatures
    score : (rows, columns) float32
        Cleaned, 0..1; where it lives is where the photograph is refined.
    confidence : float
        Below ``parameters["min_confidence"]`` the mask is empty.
    parameters : mapping
        From :func:`parameters_of`.
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
        rgb, soft, score, keys, confidence, parameters, photograph, clock.seconds, features.capped, category,
        levels=levels, device=device,
    )


def fingerprint(image: str | os.PathLike[str] | Image.Image | np.ndarray, rgb: np.ndarray) -> str:
    """Of the file, or of the pixels where there is no file."""
    return images.file_hash(image) if isinstance(image, (str, os.PathLike)) else images.content_hash(rgb)


@functools.lru_cache(maxsize=1)
def builtin() -> ViT:
    """The built-in checkpoint, read once."""
    from vitnp.checkpoint import load_vit

    return load_vit("auto")


@functools.lru_cache(maxsize=1)
def builtin_collection() -> Collection:
    """What came of fitting many photographs with the built-in checkpoint, read once."""
    from vitnp.weights.registry import BUILT_IN, collection_path

    return Collection.load(collection_path(BUILT_IN))


def chosen_collection(
    wanted: Collection | str | os.PathLike[str] | None, vit: ViT, **options
) -> tuple[Collection | None, str | None]:
    """The fitted collection that photographs, each by itself, are judged by.

    Parameters
    ----------
    wanted : "auto", None or "none", path or Collection
        As for :func:`segment_image`.
    vit : ViT
    **options
        Of :func:`parameters_of`.

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
        reason = builtin_collection().mismatch(parameters_of(vit, **options))
        return (None, reason) if reason else (builtin_collection(), None)
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


class Stopwatch:
    """Seconds between laps, by name.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        A lap ends when that has done what it was told.

    Examples
    --------
    >>> clock = Stopwatch()
    >>> clock.lap("decode")
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self, device: str = "cpu") -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage."""
        if self._device != "cpu":
            kernels.for_device(self._device).wait()
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now

"""One photograph, start to end: pixels, keys, foreground score, a mask with edges, and what is made of it."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vitnp import __version__, cleaning, images, multilevel, outputs, threads
from vitnp import refine as refinement
from vitnp.errors import UsageError
from vitnp.features import Features, extract
from vitnp.vit import ViT

if TYPE_CHECKING:
    from PIL import Image

# Half of the 16-bit scale of the soft map: the mask is where it is reached.
HALF = 32768


@dataclasses.dataclass(frozen=True)
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
            The files written.

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
) -> Mapping[str, object]:
    """Everything that a photograph's answer depends on, for the record and for telling whether a result is still good."""
    config = vit.config
    return MappingProxyType({
        "version": __version__,
        "model": vit.name,
        "sha256": vit.sha256,
        "heads": config.heads,
        "pos_embed": config.pos_embed,
        "mean": list(config.mean),
        "std": list(config.std),
        "size": images.network_size(1, 1, short_side=images.SHORT_SIDE if size is None else size, patch=config.patch)[0][0],
        "facet": facet,
        "layer": layer % config.depth,
        "stride": config.patch if stride is None else stride,
        "refine": refine,
        "seed": seed,
        "max_tokens": max_tokens,
        "min_confidence": min_confidence,
    })


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
) -> Segmentation:
    """Segment one photograph into foreground and background.

    Parameters
    ----------
    image : path, PIL image, or (height, width, 3) uint8 array
    vit : ViT, optional
        From :func:`vitnp.load_vit`; by default the built-in checkpoint.
    size : int, optional
        Short side in pixels at which the network sees the photograph; by default 320.
    facet : {"key", "query", "value", "token"}
        Feature to cluster.
    layer : int
        Block to read; negative numbers count from the last.
    stride : int, optional
        Pixels between patches, a divisor of the patch; by default the patch.
    refine : {"solver", "guided", "none"}
        Bilateral solver, guided filter, or plain bilinear enlargement.
    seed : int
        Same seed and photograph, same answer, bit for bit.
    max_tokens : int
        Cap of the patch grid.
    max_pixels : int
        Larger photographs are refused before they are decoded.
    min_confidence : float
        A photograph with less confidence gets an empty mask.

    Returns
    -------
    Segmentation

    Raises
    ------
    ImageError
        When the photograph can't be read.
    CheckpointError
        When the built-in checkpoint can't be read.
    UsageError
        For an option out of range.

    Notes
    -----
    The image level of arXiv 2311.18628 as vitnp understands it, see :mod:`vitnp.multilevel`, then :mod:`vitnp.refine`.

    Examples
    --------
    >>> result = vitnp.segment_image("cat.jpg")             # doctest: +SKIP
    >>> result.mask.mean(), result.confidence               # doctest: +SKIP
    (0.31, 0.62)
    """
    if refine not in refinement.METHODS:
        raise UsageError(f"there is no refinement {refine!r}; choose one of {', '.join(refinement.METHODS)}")
    vit = _builtin() if vit is None else vit
    options = {"size": size, "facet": facet, "layer": layer, "stride": stride, "max_tokens": max_tokens}
    clock = Stopwatch()
    with threads.one_blas_thread():
        rgb = images.read_image(image, max_pixels=max_pixels)
        clock.lap("decode")
        features = extract(rgb, vit, **options)
        clock.lap("network")
        score, confidence = _image_level(features, seed)
        clock.lap("cluster")
        if confidence < min_confidence:
            soft = np.zeros(rgb.shape[:2], np.uint16)
        else:
            soft = refinement.refine(score, rgb, method=refine)
        clock.lap("refine")
    return Segmentation(
        image=rgb,
        soft=soft,
        score=score,
        keys=features.facet.reshape(*features.grid, -1),
        confidence=confidence,
        parameters=parameters_of(vit, **options, refine=refine, seed=seed, min_confidence=min_confidence),
        photograph=images.file_hash(image) if isinstance(image, (str, os.PathLike)) else images.content_hash(rgb),
        seconds=clock.seconds,
        capped=features.capped,
    )


def _image_level(features: Features, seed: int) -> tuple[np.ndarray, float]:
    """Cleaned score (rows, columns) float32 and confidence of a photograph by itself."""
    unit = features.unit
    soft, _ = multilevel.image_level(unit, features.attention, features.grid, (seed, features.digest))
    return cleaning.clean(soft.reshape(features.grid)), multilevel.confidence(soft, unit)


@functools.lru_cache(maxsize=1)
def _builtin() -> ViT:
    from vitnp.checkpoint import load_vit

    return load_vit("auto")


class Stopwatch:
    """Seconds between laps, by name.

    Examples
    --------
    >>> clock = Stopwatch()
    >>> clock.lap("decode")
    >>> list(clock.seconds)
    ['decode']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 4)
        self._last = now

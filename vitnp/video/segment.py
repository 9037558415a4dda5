"""Segment a clip with one call."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from typing import Any

from vitnp.errors import UsageError
from vitnp.method.collection import Collection
from vitnp.method.defaults import resolve_collection, resolve_vit
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter
from vitnp.video.frames import read_frames
from vitnp.video.pipeline import VideoPipeline
from vitnp.video.sample import fit_collection
from vitnp.video.smoothing import SMOOTHING, SmoothingConfig
from vitnp.vit.model import ViT

_LOG = logging.getLogger("vitnp")


def segment_video(
    frames: Any,
    vit: ViT | str | os.PathLike[str] | None = None,
    *,
    n_classes: int | None = None,
    collection: Collection | str | os.PathLike[str] | None = "auto",
    smoothing: SmoothingConfig = SMOOTHING,
    n_threads: int | None = None,
    batch: int | None = None,
    **settings: Any,
) -> Iterator[Segmentation]:
    """Segment the frames of a clip, with masks that do not flicker.

    The clip may be of any length: besides the network, a few frames per thread are held in memory. The answer is the
    same, bit for bit, for any number of threads and any batch.

    Parameters
    ----------
    frames : path of a video or folder, or list of photographs
        See :func:`vitnp.video.frames.read_frames`. An iterator, which can be read only once, needs a collection.
    vit : ViT, name or path, optional
        As for :func:`vitnp.segment_image`.
    n_classes : int, optional
        Number of classes to find. They are fitted to the clip, and that of a region is decided along its track,
        see :mod:`vitnp.video.tracks`.
    collection : "auto", "fit", None or "none", path or Collection
        The one collection that all frames are segmented with. "fit" is fitted to a sample of the frames. "auto" is the
        built-in collection where it fits, with classes from a sample of the frames if there are any; else "fit".
    smoothing : SmoothingConfig
        ``SmoothingConfig(steps=0)`` segments each frame by itself.
    n_threads : int, optional
        Frames in flight; all cores by default.
    batch : int, optional
        Maximum number of frames in a GPU's network at once.
    **settings
        `short_side`, `facet`, `layer`, `stride`, `max_tokens`, `max_pixels`, `refine`, `seed`, `min_confidence`,
        `alpha`, `domain`, `instances` and `objects`, as in :func:`vitnp.segment_image`.

    Yields
    ------
    Segmentation
        One for each frame, in order. A frame that cannot be read is left out, and logged.

    Raises
    ------
    ImageError
        If there are no frames, or their sizes differ.
    UsageError
        If a value is not allowed, or a package is missing.

    Examples
    --------
    >>> for result in vitnp.segment_video("clip.mp4"):               # doctest: +SKIP
    ...     print(result.mask.mean())
    """
    options, network = Settings(**settings), resolve_vit(vit)

    def results() -> Iterator[Segmentation]:
        fitted = resolve_clip_collection(
            frames, network, options, collection, n_classes=n_classes, n_threads=n_threads, batch=batch
        )
        pipeline = VideoPipeline(ImagePipeline.create(network, options, fitted), smoothing, n_threads, batch)
        with contextlib.closing(pipeline.segment(read_frames(frames, max_pixels=options.max_pixels))) as found:
            for each in found:
                if each.result is not None:
                    yield each.result
                elif each.error is not None:
                    _LOG.warning("%s", each.error)

    return results()


def resolve_clip_collection(
    frames: Any,
    vit: ViT,
    settings: Settings,
    collection: Collection | str | os.PathLike[str] | None = "auto",
    *,
    n_classes: int | None = None,
    **arguments: Any,
) -> Collection | None:
    """Return the collection for a clip, fitted if need be; see :func:`segment_video`.

    Parameters
    ----------
    frames, vit, settings, collection, n_classes
        As for :func:`segment_video`.
    **arguments
        Further arguments of :class:`vitnp.Segmenter`.

    Raises
    ------
    UsageError
        If a collection is to be fitted to frames that can be read only once, or the domain is "lines".
    """
    if settings.domain == "lines":
        raise UsageError("lines are found in the pixels of single frames; leave out --video, or take another domain")
    levels = None
    if collection != "fit":
        levels, reason = resolve_collection(collection, vit, settings)
        if n_classes is None and (levels is not None or reason is None):
            return levels
    if isinstance(frames, Iterator):
        raise UsageError("fitting a collection reads the frames twice, got an iterator; give a list, or a collection")
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    segmenter = Segmenter(vit, n_classes, levels=levels, **{**options, **arguments})
    return fit_collection(read_frames(frames, max_pixels=settings.max_pixels), segmenter)

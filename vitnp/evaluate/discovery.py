"""Object discovery: one box a photograph, scored against true boxes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.voc_boxes import BoxSample
from vitnp.evaluate.metrics.boxes import box_iou, corloc
from vitnp.evaluate.protocol import Scored, by_themselves, sort_out, together, watched
from vitnp.evaluate.report import FOUND_COLOR, TRUE_COLOR, Case, draw_boxes
from vitnp.io.decode import pixels_of, read_image
from vitnp.kernels.threads.pool import large_image_lock
from vitnp.masks.boxes import bounding_boxes
from vitnp.masks.overlay import overlay
from vitnp.pipeline import segment_image
from vitnp.progress import Progress, silent
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT


class Located(NamedTuple):
    """The box that was found, left, top, right and bottom in pixels, None for none; and the true ones (M, 4)."""

    box: tuple[int, int, int, int] | None
    true: np.ndarray

    @property
    def iou(self) -> float:
        """With the true box that it overlaps most."""
        return 0.0 if self.box is None else float(box_iou(self.box, self.true).max(initial=0.0))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box around the largest 8-connected part of a mask: left, top, right, bottom; None for an empty mask.

    One part, one box, as LOST and its followers do it.

    Examples
    --------
    >>> box_of(np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool))
    (1, 0, 3, 2)
    """
    boxes = bounding_boxes(mask)
    if not boxes:
        return None
    x, y, width, height, _ = boxes[0]
    return x, y, x + width, y + height


def locate(
    samples: Iterable[BoxSample], vit: ViT | None = None, *, threads: int | None = None, **options
) -> Iterator[Located | ImageError]:
    """Find the box of each photograph by itself; options as for `vitnp.segment_image`. In the order of the samples."""

    def work(sample: BoxSample) -> Located:
        with large_image_lock(pixels_of(sample.image)):
            return Located(box_of(segment_image(sample.image, vit, **options).mask), sample.load_boxes())

    yield from by_themselves(work, samples, threads)


def score_boxes(
    samples: Sequence[BoxSample],
    vit: ViT | None = None,
    *,
    threads: int | None = None,
    progress: Progress = silent,
    **options,
) -> Scored:
    """CorLoc of photographs each by itself, or with a collection fitted before.

    Parameters
    ----------
    samples : sequence of BoxSample
    vit, threads, **options
        As for `locate`.
    progress : callable, optional
        As for `vitnp.Segmenter`.

    Raises
    ------
    UsageError
        When no photograph could be scored, or none has a true box.
    """
    outcomes = watched(locate(samples, vit, threads=threads, **options), len(samples), progress)
    return _scored(samples, outcomes, lambda index: segment_image(samples[index].image, vit, **options).mask)


def score_box_set(samples: Sequence[BoxSample], segmenter: Segmenter) -> Scored:
    """CorLoc of photographs fitted as a set with all levels.

    Parameters
    ----------
    samples : sequence of BoxSample
    segmenter : Segmenter
        Not fitted yet.

    Raises
    ------
    UsageError
        When no photograph could be scored, or none has a true box.
    ImageError
        When no photograph could be read.
    """

    def work(index: int, result) -> Located:
        return Located(box_of(result.mask), samples[index].load_boxes())

    outcomes = together(segmenter, [sample.image for sample in samples], work)
    return _scored(samples, outcomes, lambda index: segmenter.masks[index])


def _scored(
    samples: Sequence[BoxSample], outcomes: Sequence[Located | ImageError], mask_of: Callable[[int], np.ndarray]
) -> Scored:
    found, failures = sort_out(outcomes)
    found = {index: one for index, one in found.items() if len(one.true)}
    if not found:
        raise UsageError("no photograph has a true box, so there is nothing to find; name another list with --split")
    share = corloc([one.box for one in found.values()], [one.true for one in found.values()])

    def picture(index: int) -> Case:
        # It was small enough to be scored.
        one, rgb = found[index], read_image(samples[index].image, max_pixels=sys.maxsize)
        ours = overlay(rgb, mask_of(index))
        boxes = np.array([one.box] if one.box else []).reshape(-1, 4)
        truth = draw_boxes(rgb, one.true, TRUE_COLOR)
        return Case(rgb, truth, draw_boxes(ours, boxes, FOUND_COLOR), samples[index].name)

    ranking = {index: one.iou for index, one in found.items()}
    box_mean = float(np.mean(list(ranking.values())))
    return Scored(len(found), {"corloc": share, "box_iou": box_mean}, ranking, failures, picture)

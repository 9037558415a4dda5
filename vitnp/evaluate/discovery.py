"""Object discovery: one box per photograph, scored against true boxes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitnp.errors import ImageError, UsageError
from vitnp.evaluate.data.voc_boxes import BoxSample
from vitnp.evaluate.metrics.boxes import box_iou, corloc
from vitnp.evaluate.protocol import (
    Evaluation,
    collect,
    fitted_mask,
    score_as_set,
    score_one_by_one,
    separate_failures,
)
from vitnp.evaluate.report import PREDICTED_COLOR, TRUE_COLOR, Case, draw_boxes
from vitnp.io.decode import pixels_of, read_image
from vitnp.kernels.threads.pool import large_image_lock
from vitnp.masks.boxes import bounding_boxes
from vitnp.masks.overlay import overlay
from vitnp.pipeline import segment_image
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT


class Localization(NamedTuple):
    """Predicted and true boxes of a photograph: left, top, right and bottom edge in pixels.

    Attributes
    ----------
    box : tuple of int, optional
        The predicted box; None for an empty mask.
    true_boxes : (M, 4) float64
        The true boxes.
    """

    box: tuple[int, int, int, int] | None
    true_boxes: np.ndarray

    @property
    def iou(self) -> float:
        """Largest IoU of the predicted box with a true one."""
        return 0.0 if self.box is None else float(box_iou(self.box, self.true_boxes).max(initial=0.0))


def largest_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return the bounding box of the largest 8-connected component of a mask, None for an empty mask.

    Only the largest component counts, as in LOST and later work.

    Parameters
    ----------
    mask : bool (rows, columns)

    Returns
    -------
    left, top, right, bottom : int
        Right and bottom are exclusive.

    Examples
    --------
    >>> largest_box(np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool))
    (1, 0, 3, 2)
    """
    boxes = bounding_boxes(mask)
    if not boxes:
        return None
    x, y, width, height, _ = boxes[0]
    return x, y, x + width, y + height


def locate(
    samples: Iterable[BoxSample], vit: ViT | None = None, *, n_threads: int | None = None, **options: Any
) -> Generator[Localization | ImageError, None, None]:
    """Segment photographs one by one, and localize their objects.

    Parameters
    ----------
    samples : iterable of BoxSample
    vit : ViT, optional
        By default the built-in checkpoint.
    n_threads : int, optional
        Photographs in progress at a time; by default one per core.
    **options
        Passed on to :func:`vitnp.segment_image`.

    Yields
    ------
    Localization or ImageError
        For each sample, in order, its boxes or the reason why there are none.
    """

    def localize(sample: BoxSample) -> Localization:
        with large_image_lock(pixels_of(sample.image)):
            return Localization(largest_box(segment_image(sample.image, vit, **options).mask), sample.load_boxes())

    yield from score_one_by_one(localize, samples, n_threads)


def score_boxes(
    samples: Sequence[BoxSample],
    vit: ViT | None = None,
    *,
    n_threads: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Evaluation:
    """Evaluate photographs that are segmented one by one, with or without a collection fitted before.

    Parameters
    ----------
    samples : sequence of BoxSample
    vit, n_threads, **options
        As for :func:`locate`.
    progress : callable, optional
        As for :class:`vitnp.Segmenter`.

    Raises
    ------
    UsageError
        When no photograph could be scored, or none has a true box.
    """
    outcomes = collect(locate(samples, vit, n_threads=n_threads, **options), len(samples), progress)
    return _evaluate(samples, outcomes, lambda index: segment_image(samples[index].image, vit, **options).mask)


def score_box_set(samples: Sequence[BoxSample], segmenter: Segmenter) -> Evaluation:
    """Evaluate photographs that are fitted and segmented as a set, with all levels.

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

    def localize(index: int, result: Segmentation) -> Localization:
        return Localization(largest_box(result.mask), samples[index].load_boxes())

    outcomes = score_as_set(segmenter, [sample.image for sample in samples], localize)
    return _evaluate(samples, outcomes, lambda index: fitted_mask(segmenter, index))


def _evaluate(
    samples: Sequence[BoxSample], outcomes: Sequence[Localization | ImageError], mask_of: Callable[[int], np.ndarray]
) -> Evaluation:
    localized, failures = separate_failures(outcomes)
    localized = {index: each for index, each in localized.items() if len(each.true_boxes)}
    if not localized:
        raise UsageError("none of the photographs has a true box; name another list with --split")
    boxes = [each.box for each in localized.values()]
    scores = {"corloc": corloc(boxes, [each.true_boxes for each in localized.values()])}
    ranking = {index: each.iou for index, each in localized.items()}
    scores["box_iou"] = float(np.mean(list(ranking.values())))

    def picture(index: int) -> Case:
        # No limit of size: the photograph has been read before.
        rgb = read_image(samples[index].image, max_pixels=sys.maxsize)
        box, true_boxes = localized[index]
        predicted = draw_boxes(overlay(rgb, mask_of(index)), [] if box is None else [box], PREDICTED_COLOR)
        return Case(rgb, draw_boxes(rgb, true_boxes, TRUE_COLOR), predicted, samples[index].name)

    return Evaluation(len(localized), scores, ranking, failures, picture)

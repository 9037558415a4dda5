"""Salient object detection: score foreground masks against true ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy as np

from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import Pair, read_truth
from vitnp.evaluate.metrics.saliency import SaliencyScores, saliency_scores
from vitnp.evaluate.protocol import (
    Evaluation,
    collect,
    fitted_mask,
    score_as_set,
    score_one_by_one,
    separate_failures,
)
from vitnp.evaluate.report import Case
from vitnp.io.decode import pixels_of, read_image
from vitnp.kernels.threads.pool import large_image_lock
from vitnp.masks.overlay import overlay
from vitnp.pipeline import segment_image
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT


def score_pair(pair: Pair, vit: ViT | None = None, **options: Any) -> SaliencyScores:
    """Segment one photograph and score its mask and its soft map.

    Parameters
    ----------
    pair : Pair
        From :func:`vitnp.evaluate.data.pairs.match_pairs`.
    vit : ViT, optional
        By default the built-in checkpoint.
    **options
        Passed on to :func:`vitnp.segment_image`.

    Raises
    ------
    ImageError
        When the photograph or its mask can't be read, or their sizes differ.
    UsageError
        For an invalid option.
    """
    with large_image_lock(pixels_of(pair.image)):
        return _score(pair, segment_image(pair.image, vit, **options))


def score_pairs(
    pairs: Iterable[Pair], vit: ViT | None = None, *, n_threads: int | None = None, **options: Any
) -> Generator[SaliencyScores | ImageError, None, None]:
    """Segment and score photographs one by one.

    Scores don't depend on the number of threads, bit for bit.

    Parameters
    ----------
    pairs : iterable of Pair
    vit, **options
        As for :func:`score_pair`.
    n_threads : int, optional
        Photographs in progress at a time; by default one per core.

    Yields
    ------
    SaliencyScores or ImageError
        For each pair, in order, the scores or the reason why there are none.

    Raises
    ------
    VitnpError
        For errors that concern every photograph, such as an invalid option.

    Examples
    --------
    >>> pairs, _ = match_pairs("ECSSD/images", "ECSSD/masks")                 # doctest: +SKIP
    >>> mean_scores(list(score_pairs(pairs))).iou                             # doctest: +SKIP
    0.8
    """
    yield from score_one_by_one(lambda pair: score_pair(pair, vit, **options), pairs, n_threads)


def score_photographs(
    pairs: Sequence[Pair],
    vit: ViT | None = None,
    *,
    n_threads: int | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Evaluation:
    """Evaluate photographs that are segmented one by one, with or without a collection fitted before.

    Parameters
    ----------
    pairs : sequence of Pair
    vit, n_threads, **options
        As for :func:`score_pairs`.
    progress : callable, optional
        As for :class:`vitnp.Segmenter`.

    Raises
    ------
    UsageError
        When no photograph could be scored.
    """
    outcomes = collect(score_pairs(pairs, vit, n_threads=n_threads, **options), len(pairs), progress)
    return _evaluate(pairs, outcomes, lambda index: segment_image(pairs[index].image, vit, **options).mask)


def score_set(pairs: Sequence[Pair], segmenter: Segmenter) -> Evaluation:
    """Evaluate photographs that are fitted and segmented as a set, with all levels.

    Parameters
    ----------
    pairs : sequence of Pair
    segmenter : Segmenter
        Not fitted yet.

    Raises
    ------
    UsageError
        When no photograph could be scored.
    ImageError
        When no photograph could be read.
    """
    photographs = [pair.image for pair in pairs]
    outcomes = score_as_set(segmenter, photographs, lambda index, result: _score(pairs[index], result))
    return _evaluate(pairs, outcomes, lambda index: fitted_mask(segmenter, index))


def _score(pair: Pair, result: Segmentation) -> SaliencyScores:
    truth = read_truth(pair.mask, result.mask.shape)
    return saliency_scores(result.mask, result.soft / np.float32(65535), truth)


def _evaluate(
    pairs: Sequence[Pair], outcomes: Sequence[SaliencyScores | ImageError], mask_of: Callable[[int], np.ndarray]
) -> Evaluation:
    scores, failures = separate_failures(outcomes)

    def picture(index: int) -> Case:
        # No limit of size: the photograph has been read before.
        rgb, mask = read_image(pairs[index].image, max_pixels=sys.maxsize), mask_of(index)
        return Case(rgb, overlay(rgb, read_truth(pairs[index].mask, mask.shape)), overlay(rgb, mask), pairs[index].name)

    ranking = {index: score.iou for index, score in scores.items()}
    return Evaluation(len(scores), mean_scores(scores.values())._asdict(), ranking, failures, picture)


def mean_scores(scores: Iterable[SaliencyScores]) -> SaliencyScores:
    """Average each score over images; the result doesn't depend on their order.

    Raises
    ------
    ValueError
        When there are no scores.

    Examples
    --------
    >>> mean_scores([SaliencyScores(1, 1, 1, 0, 1, 1), SaliencyScores(0, 0.5, 0, 0.5, 0, 0)])
    SaliencyScores(iou=0.5, accuracy=0.75, max_f=0.5, mae=0.25, s_measure=0.5, boundary_f=0.5)
    """
    columns = list(zip(*scores))
    if not columns:
        raise ValueError("scores must not be empty")
    # fsum rounds once, at the end, so the order doesn't matter.
    return SaliencyScores(*(math.fsum(column) / len(column) for column in columns))

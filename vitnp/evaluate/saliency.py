"""Scores of the foreground masks of photographs whose truth is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vitnp.errors import ImageError
from vitnp.evaluate.data.pairs import Pair, read_truth
from vitnp.evaluate.metrics.saliency import SaliencyScores, saliency_scores
from vitnp.evaluate.protocol import Scored, by_themselves, sort_out, together, watched
from vitnp.evaluate.report import Case
from vitnp.io.decode import pixels_of, read_image
from vitnp.kernels.threads.pool import large_image_lock
from vitnp.masks.overlay import overlay
from vitnp.pipeline import segment_image
from vitnp.progress import Progress, silent
from vitnp.result import Segmentation
from vitnp.segmenter import Segmenter
from vitnp.vit.model import ViT


def score_pair(pair: Pair, vit: ViT | None = None, **options) -> SaliencyScores:
    """Segment one photograph and score its mask and its soft map.

    Parameters
    ----------
    pair : Pair
        From `vitnp.evaluate.data.pairs.match_pairs`.
    vit : ViT, optional
        The built-in checkpoint when left out.
    **options
        Passed on to `vitnp.segment_image`.

    Raises
    ------
    ImageError
        When the photograph or its mask can't be read, or their sizes differ.
    UsageError
        For an option out of range.
    """
    with large_image_lock(pixels_of(pair.image)):
        return _score(pair, segment_image(pair.image, vit, **options))


def score_pairs(
    pairs: Iterable[Pair], vit: ViT | None = None, *, threads: int | None = None, **options
) -> Iterator[SaliencyScores | ImageError]:
    """Segment and score many photographs.

    The answers are the same, bit for bit, whatever the number of threads.

    Parameters
    ----------
    pairs, vit, **options
        As for `score_pair`.
    threads : int, optional
        Photographs in flight, by default one for each core.

    Yields
    ------
    SaliencyScores or ImageError
        One for each pair, in their order: the scores, or why the pair has none.

    Raises
    ------
    VitnpError
        What would fail for every photograph, such as an option out of range.

    Examples
    --------
    >>> pairs, _ = match_pairs("ECSSD/images", "ECSSD/masks")                 # doctest: +SKIP
    >>> mean_scores(list(score_pairs(pairs))).iou                             # doctest: +SKIP
    0.8
    """
    yield from by_themselves(lambda pair: score_pair(pair, vit, **options), pairs, threads)


def score_photographs(
    pairs: Sequence[Pair], vit: ViT | None = None, *, threads: int | None = None, progress: Progress = silent, **options
) -> Scored:
    """Score each photograph by itself, or with a collection fitted before.

    Parameters
    ----------
    pairs, vit, threads, **options
        As for `score_pairs`.
    progress : callable, optional
        As for `vitnp.Segmenter`.

    Raises
    ------
    UsageError
        When no photograph could be scored.
    """
    outcomes = watched(score_pairs(pairs, vit, threads=threads, **options), len(pairs), progress)
    return _scored(pairs, outcomes, lambda index: segment_image(pairs[index].image, vit, **options).mask)


def score_set(pairs: Sequence[Pair], segmenter: Segmenter) -> Scored:
    """Fit photographs as a set with all levels, and score their masks.

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
    outcomes = together(segmenter, [pair.image for pair in pairs], lambda index, result: _score(pairs[index], result))
    return _scored(pairs, outcomes, lambda index: segmenter.masks[index])


def _score(pair: Pair, result: Segmentation) -> SaliencyScores:
    truth = read_truth(pair.mask, result.mask.shape)
    return saliency_scores(result.mask, result.soft / np.float32(65535), truth)


def _scored(
    pairs: Sequence[Pair], outcomes: Sequence[SaliencyScores | ImageError], mask_of: Callable[[int], np.ndarray]
) -> Scored:
    scores, failures = sort_out(outcomes)

    def picture(index: int) -> Case:
        # It was small enough to be scored.
        rgb, mask = read_image(pairs[index].image, max_pixels=sys.maxsize), mask_of(index)
        return Case(rgb, overlay(rgb, read_truth(pairs[index].mask, mask.shape)), overlay(rgb, mask), pairs[index].name)

    ranking = {index: score.iou for index, score in scores.items()}
    return Scored(len(scores), mean_scores(scores.values())._asdict(), ranking, failures, picture)


def mean_scores(scores: Iterable[SaliencyScores]) -> SaliencyScores:
    """Mean of each score over the images, whose order doesn't matter.

    Raises
    ------
    ValueError
        When there are no scores.

    Examples
    --------
    >>> mean_scores([SaliencyScores(1, 1, 1, 0, 1), SaliencyScores(0, 0.5, 0, 0.5, 0)])
    SaliencyScores(iou=0.5, accuracy=0.75, max_f=0.5, mae=0.25, s_measure=0.5)
    """
    columns = list(zip(*scores))
    if not columns:
        raise ValueError("there are no scores to average")
    # fsum rounds only once, whatever the order.
    return SaliencyScores(*(math.fsum(column) / len(column) for column in columns))

"""Scores of the foreground masks of photographs whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from vitnp.datasets import Pair, read_truth
from vitnp.errors import ImageError
from vitnp.images import pixels_of
from vitnp.metrics import SaliencyScores, saliency_scores
from vitnp.segmentation import segment_image
from vitnp.threads import in_order, one_blas_thread, room_for, thread_count
from vitnp.vit import ViT

__all__ = ["mean_scores", "score_pair", "score_pairs"]


def score_pair(pair: Pair, vit: ViT | None = None, **options) -> SaliencyScores:
    """Segment one photograph and score its mask and its soft map.

    Parameters
    ----------
    pair : Pair
        From `vitnp.datasets.match_pairs`.
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
    with room_for(pixels_of(pair.image)):
        result = segment_image(pair.image, vit, **options)
        truth = read_truth(pair.mask, result.mask.shape)
        return saliency_scores(result.mask, result.soft / np.float32(65535), truth)


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

    def attempt(pair: Pair) -> SaliencyScores | ImageError:
        try:
            return score_pair(pair, vit, **options)
        except ImageError as error:
            return error

    with one_blas_thread():
        yield from in_order(attempt, pairs, thread_count(threads))


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

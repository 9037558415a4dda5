"""What all evaluations share: photographs scored one by one or as a set, over several seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.evaluate.table import Table
from vitnp.kernels.threads.blas import one_blas_thread
from vitnp.kernels.threads.pool import map_ordered, resolve_n_threads
from vitnp.progress import Progress, silent
from vitnp.segmenter import Segmenter

if TYPE_CHECKING:
    from vitnp.evaluate.report import Case
    from vitnp.result import Segmentation

__all__ = [
    "Scored", "by_themselves", "mean_and_deviation", "over_seeds", "shared_cache", "sort_out", "together", "watched",
]  # fmt: skip

Item = TypeVar("Item")
Score = TypeVar("Score")


@dataclasses.dataclass(frozen=True)
class Scored:
    """How a method did on a data set.

    Attributes
    ----------
    images : int
        Photographs that count.
    scores : mapping of str to float
        Of the whole set.
    ranking : mapping of int to float
        Each photograph's own score by its place in the set; higher is better.
    failures : sequence of ImageError
        Why the others don't count.
    picture : callable
        Gives the :class:`vitnp.evaluate.report.Case` of a photograph by its place.
    classes : mapping of str to float
        A score for each class, where there are classes; NaN for those that don't occur.
    """

    images: int
    scores: Mapping[str, float]
    ranking: Mapping[int, float]
    failures: Sequence[ImageError]
    picture: Callable[[int], Case]
    classes: Mapping[str, float] = dataclasses.field(default_factory=dict)


def by_themselves(
    work: Callable[[Item], Score], items: Iterable[Item], threads: int | None = None
) -> Iterator[Score | ImageError]:
    """Results of `work`, or the ImageError that it raised, in the order of the items.

    The answers are the same, bit for bit, whatever the number of threads.

    Examples
    --------
    >>> list(by_themselves(abs, [-2, 1], threads=2))
    [2, 1]
    """

    def attempt(item: Item) -> Score | ImageError:
        try:
            return work(item)
        except ImageError as error:
            return error

    with one_blas_thread():
        yield from map_ordered(attempt, items, resolve_n_threads(threads))


def together(
    segmenter: Segmenter, photographs: Sequence[Any], score: Callable[[int, Segmentation], Score]
) -> list[Score | ImageError]:
    """Fit photographs as a set, and score each as soon as its mask is known.

    Parameters
    ----------
    segmenter : Segmenter
        Not fitted yet.
    photographs : sequence of path, PIL image or array
    score : callable
        Takes the photograph's place and what was found there; called from several threads.

    Returns
    -------
    list
        The scores, or why there is none, in the order of the photographs.
    """
    found: dict[int, Score] = {}

    def observe(index: int, result: Segmentation) -> None:
        found[index] = score(index, result)

    segmenter.fit(photographs, observe=observe)
    failures = segmenter.failures
    return [failures[index] if index in failures else found[index] for index in range(len(photographs))]


def watched(outcomes: Iterable[Score], total: int, progress: Progress = silent) -> list[Score]:
    """All outcomes, with progress shown as they come."""
    found = []
    with progress("photographs", total) as advance, contextlib.closing(iter(outcomes)) as coming:
        for outcome in coming:
            found.append(outcome)
            advance(1)
    return found


@contextlib.contextmanager
def shared_cache(cache: str | Path | None, runs: int) -> Iterator[str | Path | None]:
    """A folder where several runs share their features: the cache, or one that lasts as long as it's needed.

    A single run without a cache needs none (None).
    """
    if cache is not None or runs < 2:
        yield cache
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="vitnp-features-")
    except OSError as error:
        raise OutputError(
            f"can't make a temporary folder in {tempfile.gettempdir()}: {error.strerror}; "
            "set TMPDIR or give --cache DIR"
        ) from None
    with made as folder:
        yield folder


def sort_out(outcomes: Sequence[Score | ImageError]) -> tuple[dict[int, Score], list[ImageError]]:
    """Scores by their place, and the errors.

    Raises
    ------
    UsageError
        When there are no scores: the first error's reason.
    """
    scores = {index: outcome for index, outcome in enumerate(outcomes) if not isinstance(outcome, ImageError)}
    failures = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
    if not scores:
        reason = f"; the first: {failures[0]}" if failures else ""
        raise UsageError(f"none of the {len(outcomes)} photographs could be scored{reason}")
    return scores, failures


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); of a single value the deviation is 0.

    Examples
    --------
    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def over_seeds(runs: Sequence[Mapping[str, float]]) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and deviation of each score over several runs; None where no run has a number.

    Examples
    --------
    >>> over_seeds([{"iou": 0.5}, {"iou": 1.5}])
    ({'iou': 1.0}, {'iou': 0.7071067811865476})
    """
    means, deviations = {}, {}
    for name in runs[0]:
        values = [run[name] for run in runs if not math.isnan(run[name])]
        means[name], deviations[name] = mean_and_deviation(values) if values else (None, None)
    return means, deviations


def summary(runs: Sequence[Scored], titles: Mapping[str, str], seeds: range | None) -> tuple[Table, dict]:
    """What runs scored, for people and for programs.

    Parameters
    ----------
    runs : sequence of Scored
        One a seed.
    titles : mapping of str to str
        What each score is called in the table.
    seeds : range, optional
        Of the runs, for mean and sample deviation; without them there is one run, and its scores alone are given.

    Returns
    -------
    Table, dict
    """
    means, deviations = over_seeds([run.scores for run in runs])
    class_means, class_deviations = over_seeds([run.classes for run in runs])
    result = {"images": runs[0].images, **means}
    if class_means:
        result["classes"] = class_means
    rows = [("photographs", runs[0].images, None, *[run.images for run in runs])]
    rows += [(title, means[key], deviations[key], *[run.scores[key] for run in runs]) for key, title in titles.items()]
    rows += [
        (f"IoU {name}", class_means[name], class_deviations[name], *[run.classes[name] for run in runs])
        for name in class_means
    ]
    if seeds is None:
        return Table(("score", "value"), tuple(row[:2] for row in rows)), result
    result["deviation"] = {**deviations, **({"classes": class_deviations} if class_deviations else {})}
    result["seeds"] = [{"seed": seed, **run.scores} for seed, run in zip(seeds, runs)]
    return Table(("score", "mean", "deviation", *(f"seed {seed}" for seed in seeds)), tuple(rows)), result

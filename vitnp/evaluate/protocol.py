"""Evaluation protocol of all tasks: score photographs one by one or as a set, and aggregate scores over seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vitnp.errors import ImageError, OutputError, UsageError
from vitnp.evaluate.table import Cell, Table
from vitnp.features.temporary import TEMPORARY_STORE
from vitnp.io.locked_folder import locked, remove_abandoned
from vitnp.kernels.threads.blas import one_blas_thread
from vitnp.kernels.threads.pool import map_ordered, resolve_n_threads
from vitnp.progress import Progress, silent
from vitnp.segmenter import Segmenter

if TYPE_CHECKING:
    from vitnp.evaluate.report import Case
    from vitnp.result import Segmentation

Item = TypeVar("Item")
Score = TypeVar("Score")

# Mean or standard deviation of each score by name; None where no run has a number.
Statistics = dict[str, "float | None"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one method on one data set.

    Attributes
    ----------
    images : int
        Number of photographs that were scored.
    scores : mapping of str to float
        Scores of the data set by name.
    ranking : mapping of int to float
        Score of each photograph by its index in the data set; higher is better.
    failures : sequence of ImageError
        Reasons why the other photographs were not scored.
    picture : callable
        ``picture(index)`` returns the :class:`vitnp.evaluate.report.Case` of a photograph.
    classes : mapping of str to float
        IoU of each class by name, for tasks with classes; NaN for classes that don't occur.
    """

    images: int
    scores: Mapping[str, float]
    ranking: Mapping[int, float]
    failures: Sequence[ImageError]
    picture: Callable[[int], Case]
    classes: Mapping[str, float] = dataclasses.field(default_factory=dict)


def score_one_by_one(
    work: Callable[[Item], Score], items: Iterable[Item], n_threads: int | None = None
) -> Generator[Score | ImageError, None, None]:
    """Call `work` for each item in several threads.

    Results don't depend on the number of threads, bit for bit.

    Parameters
    ----------
    work : callable
        Takes an item and returns its score.
    items : iterable
    n_threads : int, optional
        Items in progress at a time; by default one per core.

    Yields
    ------
    Score or ImageError
        For each item, in order, the result of `work` or the ImageError that it raised. Other errors are raised.

    Examples
    --------
    >>> list(score_one_by_one(abs, [-2, 1], n_threads=2))
    [2, 1]
    """

    def attempt(item: Item) -> Score | ImageError:
        try:
            return work(item)
        except ImageError as error:
            return error

    with one_blas_thread():
        yield from map_ordered(attempt, items, resolve_n_threads(n_threads))


def score_as_set(
    segmenter: Segmenter, photographs: Sequence[Any], score: Callable[[int, Segmentation], Score]
) -> list[Score | ImageError]:
    """Fit photographs as a set, and score each as soon as it is segmented.

    Parameters
    ----------
    segmenter : Segmenter
        Not fitted yet.
    photographs : sequence of path, PIL image or array
    score : callable
        ``score(index, segmentation)`` returns the score of a photograph; called from several threads.

    Returns
    -------
    list
        For each photograph, in order, its score or the reason why there is none.
    """
    scores: dict[int, Score] = {}

    def observe(index: int, result: Segmentation) -> None:
        scores[index] = score(index, result)

    segmenter.fit(photographs, observe=observe)
    failures = segmenter.failures
    return [failures[index] if index in failures else scores[index] for index in range(len(photographs))]


def fitted_mask(segmenter: Segmenter, index: int) -> np.ndarray:
    """Return the mask of a photograph that `segmenter` was fitted on, bool (rows, columns).

    Raises
    ------
    ImageError
        When the photograph could not be segmented.
    """
    mask = segmenter.masks[index]
    if mask is None:
        raise segmenter.failures[index]
    return mask


def collect(outcomes: Generator[Score, None, None], total: int, progress: Progress = silent) -> list[Score]:
    """Return all results of a generator, and report progress as they arrive."""
    results = []
    with progress("photographs", total) as advance, contextlib.closing(outcomes):
        for outcome in outcomes:
            results.append(outcome)
            advance(1)
    return results


def separate_failures(outcomes: Sequence[Score | ImageError]) -> tuple[dict[int, Score], list[ImageError]]:
    """Separate scores, by their index, from errors.

    Raises
    ------
    UsageError
        When there are no scores; the message repeats the first error.
    """
    scores = {index: outcome for index, outcome in enumerate(outcomes) if not isinstance(outcome, ImageError)}
    failures = [outcome for outcome in outcomes if isinstance(outcome, ImageError)]
    if not scores:
        reason = f"; the first: {failures[0]}" if failures else ""
        raise UsageError(f"none of the {len(outcomes)} photographs could be scored{reason}")
    return scores, failures


@contextlib.contextmanager
def shared_cache(cache: str | Path | None, runs: int) -> Iterator[str | Path | None]:
    """Provide a folder in which several runs share their features.

    Parameters
    ----------
    cache : path, optional
        Folder to use; by default a temporary one, removed at the end.
    runs : int
        Number of runs. A single run without a cache needs no folder.

    Yields
    ------
    path or None

    Raises
    ------
    OutputError
        When no temporary folder can be created.
    """
    if cache is not None or runs < 2:
        yield cache
        return
    remove_abandoned(tempfile.gettempdir(), TEMPORARY_STORE)
    try:
        temporary = tempfile.TemporaryDirectory(prefix=TEMPORARY_STORE)
    except OSError as error:
        raise OutputError(
            f"cannot create a temporary folder in {tempfile.gettempdir()}: {error.strerror}; "
            "set TMPDIR or give --cache DIR"
        ) from None
    with temporary as folder, locked(Path(folder)):
        yield folder


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n - 1), which is 0 for a single value.

    Examples
    --------
    >>> mean_and_deviation([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def aggregate(runs: Sequence[Mapping[str, float]]) -> tuple[Statistics, Statistics]:
    """Compute mean and standard deviation of each score over several runs, without NaNs.

    Examples
    --------
    >>> aggregate([{"iou": 0.5}, {"iou": 1.5}])
    ({'iou': 1.0}, {'iou': 0.7071067811865476})
    """
    means: Statistics = {}
    deviations: Statistics = {}
    for name in runs[0]:
        values = [run[name] for run in runs if not math.isnan(run[name])]
        means[name], deviations[name] = mean_and_deviation(values) if values else (None, None)
    return means, deviations


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores of several runs, with means and sample deviations.

    Attributes
    ----------
    runs : sequence of Evaluation
        One per seed.
    seeds : range, optional
        Seeds of the runs; None for a single run, which is shown without deviations.
    means, deviations : dict of str to (float or None)
        Statistics of each score over the runs.
    class_means, class_deviations : dict of str to (float or None)
        Statistics of the IoU of each class.
    """

    runs: Sequence[Evaluation]
    seeds: range | None
    means: Statistics
    deviations: Statistics
    class_means: Statistics
    class_deviations: Statistics

    def table(self, titles: Mapping[str, str]) -> Table:
        """Return a table with one row per score and class.

        Parameters
        ----------
        titles : mapping of str to str
            Title of each score in the table; scores without a title are left out.
        """
        runs = self.runs
        rows: list[tuple[Cell, ...]] = [("photographs", runs[0].images, None, *[run.images for run in runs])]
        for name, title in titles.items():
            rows.append((title, self.means[name], self.deviations[name], *[run.scores[name] for run in runs]))
        for name, mean in self.class_means.items():
            rows.append((f"IoU {name}", mean, self.class_deviations[name], *[run.classes[name] for run in runs]))
        if self.seeds is None:
            return Table(("score", "value"), tuple(row[:2] for row in rows))
        return Table(("score", "mean", "deviation", *(f"seed {seed}" for seed in self.seeds)), tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """Return the same as a dict for JSON, with every score under its own name."""
        result: dict[str, Any] = {"images": self.runs[0].images, **self.means}
        if self.class_means:
            result["classes"] = self.class_means
        if self.seeds is not None:
            classes = {"classes": self.class_deviations} if self.class_deviations else {}
            result["deviation"] = {**self.deviations, **classes}
            result["seeds"] = [{"seed": seed, **run.scores} for seed, run in zip(self.seeds, self.runs)]
        return result


def summarize(runs: Sequence[Evaluation], seeds: range | None = None) -> Summary:
    """Summarize runs over seeds, or a single run without `seeds`."""
    return Summary(runs, seeds, *aggregate([run.scores for run in runs]), *aggregate([run.classes for run in runs]))

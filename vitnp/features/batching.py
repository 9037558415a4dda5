"""The batching pipeline: photographs of one size go through the network together, as many as the memory holds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from vitnp import kernels, options
from vitnp.errors import ImageError, OutputError
from vitnp.features.extract import NetworkInput
from vitnp.features.record import FeatureRecord
from vitnp.kernels.stopwatch import Stopwatch
from vitnp.kernels.threads import pool
from vitnp.vit.model import ViT

Item = TypeVar("Item")
Result = TypeVar("Result")

# Limit of the patches in a batch on the CPU, as many as one photograph may have; in a network of width 768 a block takes
# 150 MB for them.
_BATCH_PATCHES = 4096

# Default limits of the photographs in a batch; a GPU gains nothing from more.
_CPU_BATCH, _GPU_BATCH = 8, 32

# Memory that a photograph takes on a GPU while it is in the network, in numbers per token and unit of width: tokens,
# queries, keys and values twice, the MLP's hidden layer, what is computed from these, features in float32.
_NUMBERS_PER_TOKEN = 32
# Share of the free memory that a batch is planned to take.
_SHARE_OF_MEMORY = 0.5

# Number of batches of photographs that wait for others of their size before the oldest goes as it is.
_WAITING_BATCHES = 4


class BatchSizer:
    """Number of photographs that go through the network together.

    Parameters
    ----------
    vit : ViT
    limit : int, optional
        Maximum asked for by the user.

    Attributes
    ----------
    most : int
        Maximum for photographs of any size.
    """

    def __init__(self, vit: ViT, limit: int | None = None) -> None:
        self._vit, self._limit = vit, limit
        self.most = limit or (_CPU_BATCH if vit.device == "cpu" else _GPU_BATCH)

    def of(self, patches: int) -> int:
        """Return the number of photographs of that many patches each."""
        if self._vit.device == "cpu":
            return max(1, _BATCH_PATCHES // patches)
        if self._limit is not None:
            return self.most
        needed = patches * self._vit.config.width * _NUMBERS_PER_TOKEN * self._vit.dtype.itemsize
        free = kernels.for_device(self._vit.device).free_bytes()
        return min(max(1, int(_SHARE_OF_MEMORY * free / needed)), self.most)

    def halve(self, tried: int) -> None:
        """Allow at most half of the number that did not fit into the memory.

        Raises
        ------
        DeviceError
            If a single photograph did not fit.
        """
        k = kernels.for_device(self._vit.device)
        if tried == 1:
            raise k.out_of_memory("one photograph in this network")
        self.most = tried // 2
        k.release()

    def through(
        self, group: Sequence[Item], patches: int, run: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
        """Run photographs of that many patches each in batches, smaller ones if a GPU's memory runs out.

        Yields
        ------
        batch, results
            The photographs of a batch and what `run` returned for them.

        Raises
        ------
        DeviceError
            If a GPU's memory does not hold a single photograph.
        """
        done = 0
        while done < len(group):
            batch = group[done : done + self.of(patches)]
            try:
                results = run(batch)
            except MemoryError:
                if self._vit.device == "cpu":
                    raise
                self.halve(len(batch))
                continue
            done += len(batch)
            yield batch, results


def group_by_shape(
    items: Iterable[Item],
    shape_of: Callable[[Item], Hashable | None],
    most: int,
    *,
    weight: Callable[[Item], int] = lambda item: 1,
    room: int | None = None,
) -> Iterator[list[Item]]:
    """Group items of one shape, in the order in which they arrive.

    Parameters
    ----------
    items : iterable
    shape_of : callable
        Shape of an item; None for an item that waits for no others.
    most : int
        Maximum size of a group.
    weight : callable
        Weight of an item while it waits.
    room : int, optional
        Limit of the weight of all waiting items, by default that of a few groups. When it is reached, the group that
        has waited longest is released.

    Examples
    --------
    >>> list(group_by_shape([1, 2, 3, 5, 4, 7], lambda number: number % 2, 3))
    [[1, 3, 5], [2, 4], [7]]
    """
    room = _WAITING_BATCHES * most if room is None else room
    waiting: dict[Hashable, list[Item]] = {}  # ordered by their oldest item
    taken = 0
    for item in items:
        shape = shape_of(item)
        if shape is None:
            yield [item]
            continue
        waiting.setdefault(shape, []).append(item)
        taken += weight(item)
        while len(waiting.get(shape, ())) == most or taken >= room:
            group = waiting.pop(shape if len(waiting.get(shape, ())) == most else next(iter(waiting)))
            taken -= sum(map(weight, group))
            yield group
    yield from waiting.values()


@dataclasses.dataclass
class Job:
    """A photograph on its way through the stages; subclasses add what theirs need.

    A job whose `input` is set waits for the network; any other one passes it by.

    Attributes
    ----------
    index : int
        Position among the photographs given.
    photograph : str or None
        Fingerprint; None if the photograph cannot be read.
    input : NetworkInput or None
    features : FeatureRecord or None
        Set by the network; None for a photograph that was skipped or failed.
    error : ImageError or OutputError or None
    seconds : dict of str to float
        Time spent per stage.
    """

    index: int
    photograph: str | None = None
    input: NetworkInput | None = None
    features: FeatureRecord | None = None
    error: ImageError | OutputError | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


JobT = TypeVar("JobT", bound=Job)


def through_network(
    jobs: Iterable[JobT],
    vit: ViT,
    extract: Callable[[Sequence[NetworkInput]], Sequence[FeatureRecord]],
    *,
    batch: int | None = None,
    stride: int | None = None,
    n_threads: int = 1,
    weight: Callable[[JobT], int] = lambda job: 1,
    room: int | None = None,
) -> Iterator[JobT]:
    """Take jobs through the network in batches of one input size, in the order in which they are done.

    Parameters
    ----------
    jobs : iterable of Job
        Drawn as they are needed.
    vit : ViT
    extract : callable
        Gives the features of inputs of one size.
    batch : int, optional
        Maximum number of photographs per forward pass; by default 8 on the CPU and what fits into half of the free
        memory on a GPU, where a batch that does not fit is halved and tried again.
    stride : int, optional
        Pixels between patches.
    n_threads : int
        Forward passes at the same time on a CPU; a GPU runs one after the other.
    weight, room
        As for :func:`group_by_shape`.

    Yields
    ------
    Job
        With `features` in place of `input`.

    Raises
    ------
    DeviceError
        If a GPU's memory does not hold a single photograph.
    UsageError
        If `batch` is not allowed.
    """
    sizer = BatchSizer(vit, options.check("batch", batch))

    def forward(group: list[JobT]) -> list[JobT]:
        waiting = [job for job in group if job.input is not None]
        if not waiting:
            return group
        rows, columns = vit.grid(*waiting[0].input.pixels.shape[:2], stride)
        clock = Stopwatch(vit.device)
        for part, records in sizer.through(waiting, rows * columns, lambda part: extract([job.input for job in part])):
            clock.lap("network")
            for job, record in zip(part, records):
                job.features, job.input = record, None
                job.seconds["network"] = round(clock.seconds["network"] / len(part), 4)
        return group

    with (
        contextlib.closing(group_by_shape(jobs, _input_shape, sizer.most, weight=weight, room=room)) as groups,
        contextlib.closing(pool.map_ordered(forward, groups, n_threads if vit.device == "cpu" else 1)) as done,
    ):
        for group in done:
            yield from group


def _input_shape(job: Job) -> tuple[int, ...] | None:
    """Return what jobs of one batch have in common; None for a job that needs no network."""
    return None if job.input is None else job.input.pixels.shape

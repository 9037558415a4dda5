"""The batching pipeline: run photographs of one size through the network together, as many as fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
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

# Maximum number of patches in a batch on the CPU, as many as one photograph may have. In a network of width 768 a block
# takes 150 MB for them.
_BATCH_PATCHES = 4096

# Default maximum number of photographs in a batch; larger ones are not faster on a GPU.
_CPU_BATCH, GPU_BATCH = 8, 32

# GPU memory of a photograph in the network, in numbers per token and unit of width: tokens, queries, keys and values
# twice, the hidden layer of the MLP, temporary arrays, features in float32.
_NUMBERS_PER_TOKEN = 32
# Share of the free memory that a batch may take.
_SHARE_OF_MEMORY = 0.5

# Number of full batches whose photographs may wait for others of their size before the oldest group is released.
_WAITING_BATCHES = 4


class BatchSizer:
    """Choose the number of photographs per forward pass.

    Parameters
    ----------
    vit : ViT
    limit : int, optional
        Maximum set by the user.

    Attributes
    ----------
    most : int
        Maximum for photographs of any size.
    """

    def __init__(self, vit: ViT, limit: int | None = None) -> None:
        self._vit, self._limit = vit, limit
        self.most = limit or (_CPU_BATCH if vit.device == "cpu" else GPU_BATCH)

    def of(self, patches: int) -> int:
        """Return the batch size for photographs of this many patches each."""
        if self._vit.device == "cpu":
            return max(1, _BATCH_PATCHES // patches)
        if self._limit is not None:
            return self.most
        needed = patches * self._vit.config.width * _NUMBERS_PER_TOKEN * self._vit.dtype.itemsize
        free = kernels.for_device(self._vit.device).free_bytes()
        return min(max(1, int(_SHARE_OF_MEMORY * free / needed)), self.most)

    def halve(self, tried: int) -> None:
        """Halve the maximum after a batch of this size did not fit into GPU memory.

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
        """Run photographs of this many patches each in batches, in smaller ones if GPU memory runs out.

        Yields
        ------
        batch, results
            The photographs of a batch, and the results of `run` for them.

        Raises
        ------
        DeviceError
            If GPU memory does not hold a single photograph.
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
) -> Generator[list[Item], None, None]:
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
        Limit of the total weight of waiting items, by default a few full groups. When it is reached, the oldest group
        is released.

    Yields
    ------
    list
        A full group; or a smaller one, if it is the oldest or the items have ended.

    Examples
    --------
    >>> list(group_by_shape([1, 2, 3, 5, 4, 7], lambda number: number % 2, 3))
    [[1, 3, 5], [2, 4], [7]]
    """
    room = _WAITING_BATCHES * most if room is None else room
    waiting: dict[Hashable, list[Item]] = {}  # ordered by their oldest item
    total = 0
    for item in items:
        shape = shape_of(item)
        if shape is None:
            yield [item]
            continue
        waiting.setdefault(shape, []).append(item)
        total += weight(item)
        while len(waiting.get(shape, ())) == most or total >= room:
            group = waiting.pop(shape if len(waiting.get(shape, ())) == most else next(iter(waiting)))
            total -= sum(map(weight, group))
            yield group
    yield from waiting.values()


@dataclasses.dataclass
class Job:
    """A photograph on its way through the stages of a pipeline; subclasses add the fields of further stages.

    A job with an `input` goes through the network; others, skipped or failed, are passed on unchanged.

    Attributes
    ----------
    index : int
        Position of the photograph in the list.
    photograph : str or None
        Fingerprint; None if the photograph cannot be read.
    input : NetworkInput or None
    features : FeatureRecord or None
        Result of the network.
    error : ImageError or OutputError or None
    clocks : list of Stopwatch
        Time spent per stage.
    """

    index: int
    photograph: str | None = None
    input: NetworkInput | None = None
    features: FeatureRecord | None = None
    error: ImageError | OutputError | None = None
    clocks: list[Stopwatch] = dataclasses.field(default_factory=list)


JobT = TypeVar("JobT", bound=Job)


def through_network(
    jobs: Iterable[JobT],
    vit: ViT,
    extract: Callable[[Sequence[NetworkInput]], Sequence[FeatureRecord]],
    *,
    then: Callable[[Sequence[JobT]], None] = lambda jobs: None,
    batch: int | None = None,
    stride: int | None = None,
    n_threads: int = 1,
    weight: Callable[[JobT], int] = lambda job: 1,
    room: int | None = None,
) -> Generator[JobT, None, None]:
    """Run jobs through the network in batches of one input size, in the order in which they are finished.

    Parameters
    ----------
    jobs : iterable of Job
        Consumed as needed.
    vit : ViT
    extract : callable
        Returns the features of inputs of one size.
    then : callable
        Called with the jobs of a batch when they have their features, for work that is best done together.
    batch : int, optional
        Maximum number of photographs per forward pass. By default 8 on the CPU; on a GPU as many as fit into half of
        the free memory, and a batch that does not fit is halved and repeated.
    stride : int, optional
        Pixels between patches.
    n_threads : int
        Number of forward passes at the same time on the CPU; a GPU runs one after the other.
    weight, room
        As for :func:`group_by_shape`.

    Yields
    ------
    Job
        Jobs whose `input` was replaced by `features`.

    Raises
    ------
    DeviceError
        If GPU memory does not hold a single photograph.
    UsageError
        If `batch` is not allowed.
    """
    sizer = BatchSizer(vit, options.check("batch", batch))

    def forward(group: list[JobT]) -> list[JobT]:
        waiting = [(job, job.input) for job in group if job.input is not None]
        if not waiting:
            return group
        height, width, _ = waiting[0][1].pixels.shape
        rows, columns = vit.grid(height, width, stride)
        clock = Stopwatch(vit.device)
        for part, records in sizer.through(waiting, rows * columns, lambda part: extract([ready for _, ready in part])):
            clock.lap("network")
            clock.shared_by = len(part)
            for (job, _), record in zip(part, records):
                job.features, job.input = record, None  # `extract` has waited for a GPU, which has read the input
                job.clocks.append(clock)
            then([job for job, _ in part])
            clock = Stopwatch(vit.device)
        return group

    with (
        contextlib.closing(group_by_shape(jobs, _input_shape, sizer.most, weight=weight, room=room)) as groups,
        contextlib.closing(pool.map_ordered(forward, groups, n_threads if vit.device == "cpu" else 1)) as done,
    ):
        for group in done:
            yield from group


def _input_shape(job: Job) -> tuple[int, ...] | None:
    """Return the input shape of a job; None for a job that does not go through the network."""
    return None if job.input is None else job.input.pixels.shape

"""Photographs in groups that go through the network together: of one grid, as many as there are soon and as memory holds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from vitnp import kernels
from vitnp.vit.model import ViT

Item = TypeVar("Item")
Result = TypeVar("Result")

# Patches of a batch at most, as many as one photograph may have; a network of width 768 makes 150 MB of them in a
# block.
_BATCH_PATCHES = 4096

# Photographs in a batch at most where nobody says how many; a GPU gains nothing from more.
_CPU_BATCH, _GPU_BATCH = 8, 32

# What a photograph takes of a GPU while it's in the network, in numbers for each of its tokens and the network's width:
# tokens, queries, keys and values twice, the MLP's hidden layer, what is computed from these, features in float32.
_NUMBERS_A_TOKEN = 32
# Share of the free memory that a batch is planned to take.
_SHARE_OF_MEMORY = 0.5

# Photographs, in batches, that wait for others of their grid before a batch goes as it is.
_WAITING_BATCHES = 4


class BatchSizer:
    """How many photographs go through the network together.

    Parameters
    ----------
    vit : ViT
    wish : int, optional
        At most so many.

    Attributes
    ----------
    most : int
        Of any size.
    """

    def __init__(self, vit: ViT, wish: int | None = None) -> None:
        self._vit, self._wish = vit, wish
        self.most = wish or (_CPU_BATCH if vit.device == "cpu" else _GPU_BATCH)

    def of(self, patches: int) -> int:
        """Photographs of so many patches each."""
        if self._vit.device == "cpu":
            return max(1, _BATCH_PATCHES // patches)
        if self._wish is not None:
            return self.most
        needed = patches * self._vit.config.width * _NUMBERS_A_TOKEN * self._vit.dtype.itemsize
        free = kernels.for_device(self._vit.device).free_bytes()
        return min(max(1, int(_SHARE_OF_MEMORY * free / needed)), self.most)

    def halve(self, tried: int) -> None:
        """From now on at most half of the number that didn't fit.

        Raises
        ------
        DeviceError
            When that was one.
        """
        k = kernels.for_device(self._vit.device)
        if tried == 1:
            raise k.out_of_memory("one photograph in this network")
        self.most = tried // 2
        k.release()

    def through(
        self, group: Sequence[Item], patches: int, run: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> Iterator[tuple[Sequence[Item], Sequence[Result]]]:
        """Photographs of so many patches each, taken through `run` some at a time; on a GPU fewer, when memory says no.

        Yields
        ------
        batch, results
            What went together, and what came of it.

        Raises
        ------
        DeviceError
            When a GPU's memory doesn't hold a single one.
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
    kind: Callable[[Item], Hashable | None],
    most: int,
    *,
    weight: Callable[[Item], int] = lambda item: 1,
    room: int | None = None,
) -> Iterator[list[Item]]:
    """Items of one kind together, in the order in which they came.

    Parameters
    ----------
    items : iterable
    kind : callable
        None for an item that waits for nobody.
    most : int
        In a group.
    weight : callable
        Of an item that waits.
    room : int, optional
        For the weight of all that wait, that of some groups by default. Where it's taken up, the one that has waited longest goes,
        with those of its kind.

    Examples
    --------
    >>> list(group_by_shape([1, 2, 3, 5, 4, 7], lambda number: number % 2, 3))
    [[1, 3, 5], [2, 4], [7]]
    """
    room = _WAITING_BATCHES * most if room is None else room
    waiting: dict[Hashable, list[Item]] = {}  # in the order of their oldest
    taken = 0
    for item in items:
        which = kind(item)
        if which is None:
            yield [item]
            continue
        waiting.setdefault(which, []).append(item)
        taken += weight(item)
        while len(waiting.get(which, ())) == most or taken >= room:
            group = waiting.pop(which if len(waiting.get(which, ())) == most else next(iter(waiting)))
            taken -= sum(map(weight, group))
            yield group
    yield from waiting.values()

"""The protocol of the writers of a collection's outputs.

:mod:`vitnp.export.collection_outputs` is the table of these writers.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from vitnp.export.photograph_record import PhotographRecord


class Writer(Protocol):
    """Write one output of a collection, photograph by photograph.

    A context manager: the file appears, complete, when the ``with`` block ends without an exception. After an exception
    the file that was there before is unchanged. Memory must not grow by more than a few bytes per photograph.
    """

    def __enter__(self) -> Writer: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def add(self, photograph: PhotographRecord) -> None:
        """Add a photograph."""


def class_names(n: int) -> list[str]:
    """Return names for `n` classes that are known by number only.

    Examples
    --------
    >>> class_names(2)
    ['class 1', 'class 2']
    """
    return [f"class {number}" for number in range(1, n + 1)]

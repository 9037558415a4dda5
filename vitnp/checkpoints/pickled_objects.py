"""What the safe unpickler reads from and what it builds: a bounded stream, placeholders, names, and usable items."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

MAX_INTEGER_KEY = 2**32  # Larger integers can be chosen so that all of them have the same hash.
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class UnpicklingError(ValueError):
    """A pickle that is damaged or asks for something that no checkpoint needs.

    The message is a clause about the file, such as "its pickle has no end".
    """


class Placeholder:
    """An object of the file that isn't constructed.

    Parameters
    ----------
    name : str
        Module and name of its class or function.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not constructed>"


class Global:
    """A known name that the file asked for.

    Parameters
    ----------
    name : str
        Module and name.
    build : callable or None
        Function to call in its place; None if a :class:`Placeholder` takes the place of what it would build.
    """

    __slots__ = ("build", "name")

    def __init__(self, name: str, build: Callable[..., object] | None):
        self.name, self.build = name, build


def usable_items(pairs: Iterable[tuple[Any, object]]) -> Iterator[tuple[Any, object]]:
    """Generate the items of a dict whose keys are scalars; no weight has another one.

    Hashing a deeply nested tuple would overflow the stack of Python, and large integers can be made to collide.
    """
    for key, value in pairs:
        if isinstance(key, _KEY_TYPES) and not (type(key) is int and abs(key) >= MAX_INTEGER_KEY):
            yield key, value


class BoundedStream:
    """The part of a stream that a pickle may take; what lies beyond is as if it weren't there.

    The methods are those of a file that :mod:`pickletools` calls.
    """

    def __init__(self, stream: BinaryIO | mmap.mmap, size: int):
        self.stream, self.end = stream, stream.tell() + size

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes."""
        return self.stream.read(max(0, min(size, self.end - self.stream.tell())))

    def readline(self) -> bytes:
        """Read up to and including the next newline."""
        if isinstance(self.stream, mmap.mmap):  # its readline takes no limit
            start = self.stream.tell()
            newline = self.stream.find(b"\n", start, self.end)
            return self.stream.read((newline + 1 if newline >= 0 else self.end) - start)
        return self.stream.readline(max(0, self.end - self.stream.tell()))

    def tell(self) -> int:
        """Return the position in the stream."""
        return self.stream.tell()

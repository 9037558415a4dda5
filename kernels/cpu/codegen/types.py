"""Types of kernels' arguments, by numba's names; numba itself is imported only where something is compiled.

Machine code that is cached runs without numba, whose import takes longer than all kernels of a photograph.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A number; within the functions that generate code, ``result(*arguments)`` is numba's type of a signature.

    Attributes
    ----------
    name : str
        Name of numba and, but for none, NumPy.
    """

    name: str

    def __str__(self) -> str:
        return self.name

    def to_numba(self) -> Any:
        """Return numba's type."""
        from numba.core import types

        return getattr(types, self.name)

    def __call__(self, *arguments: Type) -> Any:
        """Return numba's signature of a function with this result."""
        return self.to_numba()(*[argument.to_numba() for argument in arguments])


@dataclasses.dataclass(frozen=True)
class Array:
    """An array.

    Attributes
    ----------
    dtype : Scalar
    ndim : int
    layout : {"A", "C"}
        With any strides, or contiguous.
    readonly : bool
        Whether arrays that cannot be written are accepted too.
    """

    dtype: Scalar
    ndim: int
    layout: Literal["A", "C"] = "A"
    readonly: bool = False

    def __str__(self) -> str:
        kind = " contiguous" if self.layout == "C" else ""
        return f"{self.dtype}{kind} array of {self.ndim} dimensions{'' if self.readonly else ', writable'}"

    def to_numba(self) -> Any:
        """Return numba's type."""
        from numba.core import types

        return types.Array(self.dtype.to_numba(), self.ndim, self.layout, readonly=self.readonly)


@dataclasses.dataclass(frozen=True)
class Tuple:
    """Several numbers, as functions that generate code return them; called as a :class:`Scalar`."""

    elements: tuple[Scalar, ...]

    def __call__(self, *arguments: Type) -> Any:
        """Return numba's signature of a function with this result."""
        from numba.core import types

        result = types.Tuple([element.to_numba() for element in self.elements])
        return result(*[argument.to_numba() for argument in arguments])


Type = Scalar | Array

void, none, boolean = Scalar("void"), Scalar("none"), Scalar("boolean")
int32, int64 = Scalar("int32"), Scalar("int64")
uint8, uint16, uint32, uint64 = Scalar("uint8"), Scalar("uint16"), Scalar("uint32"), Scalar("uint64")
float32, float64 = Scalar("float32"), Scalar("float64")

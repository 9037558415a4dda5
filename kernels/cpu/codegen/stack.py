"""Arrays of a few numbers within kernels, on the stack: no memory is allocated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic


def stack_array(*shape: int, dtype: types.Scalar = types.float32) -> Callable[[], Any]:
    """Return a function that kernels call for an array of a fixed shape, whose numbers are undefined at first.

    It is valid until the kernel returns. Calls in a loop return the same memory.

    Examples
    --------
    >>> new_pair = stack_array(2)
    """

    @intrinsic
    def new_array(context):
        from numba.core import cgutils
        from numba.np.arrayobj import make_array, populate_array

        array_type = types.Array(dtype, len(shape), "C").to_numba()

        def generate(context, builder, signature, arguments):
            element = context.get_data_type(array_type.dtype)
            size = context.get_abi_sizeof(element)
            memory = cgutils.alloca_once(builder, ir.ArrayType(element, math.prod(shape)))
            memory.align = 64
            steps = [size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
            word = ir.IntType(64)
            array = make_array(array_type)(context, builder)
            data = builder.bitcast(memory, element.as_pointer())
            populate_array(array, data, list(map(word, shape)), list(map(word, steps)), size, meminfo=None)
            return array._getvalue()

        return array_type(), generate

    return new_array

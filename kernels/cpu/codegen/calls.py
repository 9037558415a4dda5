"""Call a compiled kernel from another one through its address, with arrays and tables that are given by addresses.

A shared kernel that is called by name is compiled, and loaded, with each kernel that calls it. Of those that are called
through addresses only the ones that are needed have to be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import clear_flag
from vitnp.kernels.cpu.codegen.jit import Kernel, intrinsic
from vitnp.kernels.cpu.codegen.simd import I64


def caller(kernel: Kernel) -> Callable[..., None]:
    """Return a function for other kernels: ``call(address, (argument, ...))`` calls this one.

    An argument that is an array is given as a tuple of integers, the address of a contiguous array and its shape.

    Parameters
    ----------
    kernel : Kernel
        It returns nothing. Its :attr:`~Kernel.address` is an argument of the call, because machine code that is cached
        on disk cannot contain it.
    """

    @intrinsic
    def call(context, address, arguments):
        from numba.core import cgutils
        from numba.core import types as numba_types

        parameters = [parameter.to_numba() for parameter in kernel.signature]
        passed = numba_types.Tuple([
            numba_types.UniTuple(numba_types.int64, 1 + each.ndim) if isinstance(each, numba_types.Array) else each
            for each in parameters
        ])  # fmt: skip

        def generate(context, builder, signature, values):
            address, arguments = values
            convention = context.call_conv
            function_type = convention.get_function_type(numba_types.none, parameters)
            function = builder.inttoptr(address, function_type.as_pointer())
            unpacked = [
                _array(context, builder, each, value) if isinstance(each, numba_types.Array) else value
                for each, value in zip(parameters, cgutils.unpack_tuple(builder, arguments))
            ]
            status, _ = convention.call_function(builder, function, numba_types.none, parameters, unpacked)
            clear_flag(builder)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return numba_types.void(numba_types.int64, passed), generate

    return call


def _array(context: Any, builder: ir.IRBuilder, array_type: Any, value: ir.Value) -> ir.Value:
    """Append the array of a type of numba's with the address and shape that a tuple contains."""
    from numba.core import cgutils
    from numba.np.arrayobj import make_array, populate_array

    item = context.get_data_type(array_type.dtype)
    size = I64(context.get_abi_sizeof(item))
    address, *shape = cgutils.unpack_tuple(builder, value)
    strides = [size]
    for side in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], side))
    array = make_array(array_type)(context, builder)
    populate_array(array, builder.inttoptr(address, item.as_pointer()), shape, strides, size, meminfo=None)
    return array._getvalue()


def record_at(dtype: np.dtype) -> Callable[[int], Any]:
    """Return a function for kernels: ``record(address)`` has the fields of a structured dtype as attributes."""

    @intrinsic
    def record(context, address):
        from numba.np.numpy_support import from_dtype

        result = from_dtype(dtype)

        def generate(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(result))

        return result(types.int64.to_numba()), generate

    return record

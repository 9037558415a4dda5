"""Call a compiled kernel from another one through its address, with arrays and tables that are given by addresses.

A kernel that is called like an ordinary function is compiled again as a part of its caller. Through an address only the
call itself is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
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
        parameters = kernel.signature
        passed = types.Tuple([_passed(parameter) for parameter in parameters])

        def generate(context, builder, signature, values):
            address, arguments = values
            convention = context.call_conv
            function = builder.inttoptr(address, convention.get_function_type(types.none, parameters).as_pointer())
            unpacked = [
                _array(context, builder, parameter, value) if isinstance(parameter, types.Array) else value
                for parameter, value in zip(parameters, cgutils.unpack_tuple(builder, arguments))
            ]
            status, _ = convention.call_function(builder, function, types.none, parameters, unpacked)
            clear_flag(builder)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.int64, passed), generate

    return call


def _passed(parameter: types.Type) -> types.Type:
    """Return the type of an argument for a parameter."""
    return types.UniTuple(types.int64, 1 + parameter.ndim) if isinstance(parameter, types.Array) else parameter


def _array(context: Any, builder: ir.IRBuilder, array: types.Array, value: ir.Value) -> ir.Value:
    """Append the array of a type with the address and shape that a tuple contains."""
    item = context.get_data_type(array.dtype)
    size = context.get_abi_sizeof(item)
    address, *shape = cgutils.unpack_tuple(builder, value)
    strides = [I64(size)]
    for side in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], side))
    result = context.make_array(array)(context, builder)
    context.populate_array(
        result, data=builder.inttoptr(address, item.as_pointer()), shape=shape, strides=strides, itemsize=I64(size),
        meminfo=None,
    )  # fmt: skip
    return result._getvalue()


def record_at(dtype: np.dtype) -> Callable[[int], Any]:
    """Return a function for kernels: ``record(address)`` has the fields of a structured dtype as attributes."""

    @intrinsic
    def record(context, address):
        result = from_dtype(dtype)

        def generate(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(result))

        return result(types.int64), generate

    return record

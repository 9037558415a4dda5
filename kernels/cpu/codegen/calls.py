"""Call a compiled kernel from another one through its address, with arrays that are given by addresses.

A kernel that is called like an ordinary function is compiled again as a part of its caller. Through an address only the
call itself is compiled.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from vitnp.kernels.cpu.codegen.gil import clear_flag
from vitnp.kernels.cpu.codegen.jit import Kernel, intrinsic
from vitnp.kernels.cpu.codegen.simd import I64


def caller(kernel: Kernel) -> Callable[..., None]:
    """Return a function for other kernels: ``call(address, (argument, ...))`` calls this one.

    Parameters
    ----------
    kernel : Kernel
        It returns nothing. Its :attr:`~Kernel.address` is an argument of the call, because machine code that is cached
        on disk cannot contain it.
    """
    parameters = types.Tuple(kernel.signature)

    @intrinsic
    def call(context, address, arguments):
        def generate(context, builder, signature, values):
            address, arguments = values
            convention = context.call_conv
            function_type = convention.get_function_type(types.none, parameters.types)
            function = builder.inttoptr(address, function_type.as_pointer())
            unpacked = cgutils.unpack_tuple(builder, arguments)
            status, _ = convention.call_function(builder, function, types.none, parameters.types, unpacked)
            clear_flag(builder)
            with cgutils.if_unlikely(builder, status.is_error):
                convention.return_status_propagate(builder, status)
            return context.get_dummy_value()

        return types.void(types.int64, parameters), generate

    return call


@intrinsic
def array_at(context, address, shape, dtype):
    """Return the contiguous array of a shape and dtype, a numba type, that begins at an address."""
    array = types.Array(dtype.instance_type, len(shape), "C")

    def generate(context, builder, signature, values):
        address, shape, _ = values
        item = context.get_data_type(array.dtype)
        size = context.get_abi_sizeof(item)
        sides = cgutils.unpack_tuple(builder, shape)
        steps = [I64(size)]
        for side in reversed(sides[1:]):
            steps.insert(0, builder.mul(steps[0], side))
        result = context.make_array(array)(context, builder)
        context.populate_array(
            result, data=builder.inttoptr(address, item.as_pointer()), shape=sides, strides=steps,
            itemsize=I64(size), meminfo=None,
        )  # fmt: skip
        return result._getvalue()

    return array(types.int64, types.UniTuple(types.int64, len(shape)), dtype), generate

"""Threads inside kernels that wait for each other.

Between Python threads a wait takes a tenth of a millisecond: one has to be woken, and both want the interpreter. Where there is less
than that to do in between, the kernel itself waits, by looking at numbers in memory that the threads share
(:attr:`vitnp.kernels.threads.team.Worker.meeting`) until the last one has come.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from vitnp.kernels.cpu.codegen.gil import lay_down, pause, take_up
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64
from vitnp.kernels.threads import team
from vitnp.kernels.threads.team import ARRIVED, BROKEN, ROUND

# Looks before the processor is offered to whoever else wants it: some tenths of a millisecond.
LOOKS = 10_000

CAN_YIELD = hasattr(ctypes.pythonapi, "sched_yield")


@intrinsic
def _look(context, address):
    """The int64 at an address, read from memory every time."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _post(context, address, value):
    """Store an int64; who sees it sees all that was stored before."""

    def generate(context, builder, signature, arguments):
        address, value = arguments
        builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _add_one(context, address):
    """Raise the int64 at an address; what it was before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], I64.as_pointer()), I64(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def _give_way(context):
    """Offer the core to another program."""

    def generate(context, builder, signature, arguments):
        if CAN_YIELD:
            function = ir.FunctionType(I32, [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def meet(meeting, members):
    """Go on when all members have come here; False when one of them isn't coming any more."""
    if members == 1:
        return True
    round = _look(meeting + ROUND)
    if _add_one(meeting + ARRIVED) == members - 1:
        _post(meeting + ARRIVED, 0)
        _post(meeting + ROUND, round + 1)
        return True
    looks = 0
    while _look(meeting + ROUND) == round:
        if _look(meeting + BROKEN) != 0:
            return False
        pause()
        looks += 1
        if looks > LOOKS:
            _give_way()
    return True


@kernel(types.int64, types.int64)
def wait(meeting, members):
    """As :func:`meet`, for threads that are in Python."""
    lay_down()
    met = meet(meeting, members)
    take_up()
    return met


team.wait_in_kernel = wait

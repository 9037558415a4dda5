"""A barrier for threads inside kernels.

Between Python threads a barrier takes a tenth of a millisecond: threads have to be woken, and all of them want the GIL.
Where the work between two barriers takes less than that, the kernel itself waits, by reading numbers in shared memory
(see :class:`vitnp.kernels.threads.team.Barrier`) until the last thread has arrived.
"""

from __future__ import annotations

import ctypes

from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.gil import enter_kernel, leave_kernel, pause
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import I32, I64, declare
from vitnp.kernels.threads import team
from vitnp.kernels.threads.team import ARRIVED, BROKEN, ROUND

# Reads before the thread offers its core to other programs: some tenths of a millisecond.
MAX_READS = 10_000

CAN_YIELD = hasattr(ctypes.pythonapi, "sched_yield")


@intrinsic
def _load(context, address):
    """Return the int64 at an address, read from memory every time."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def _store(context, address, value):
    """Store an int64; a thread that reads it also sees everything that was stored before."""

    def generate(context, builder, signature, arguments):
        address, value = arguments
        builder.store_atomic(value, builder.inttoptr(address, I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _add_one(context, address):
    """Increment the int64 at an address, and return its previous value."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", builder.inttoptr(arguments[0], I64.as_pointer()), I64(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def _yield_core(context):
    """Offer the core to other programs."""

    def generate(context, builder, signature, arguments):
        if CAN_YIELD:
            function = ir.FunctionType(I32, [])
            builder.call(declare(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@kernel(types.int64, types.int64, shared=True)
def spin_wait(address, n_workers):
    """Wait until all workers have arrived; return False if the barrier is broken.

    Parameters
    ----------
    address : int
        Address of the barrier's numbers; not read if there is one worker.
    n_workers : int
    """
    if n_workers == 1:
        return True
    current_round = _load(address + ROUND)
    if _add_one(address + ARRIVED) == n_workers - 1:
        _store(address + ARRIVED, 0)
        _store(address + ROUND, current_round + 1)
        return True
    reads = 0
    while _load(address + ROUND) == current_round:
        if _load(address + BROKEN) != 0:
            return False
        pause()
        reads += 1
        if reads > MAX_READS:
            _yield_core()
    return True


@kernel(types.int64, types.int64)
def wait(address, n_workers):
    """Call :func:`spin_wait` from Python."""
    enter_kernel()
    complete = spin_wait(address, n_workers)
    leave_kernel()
    return complete


team.wait_in_kernel = wait

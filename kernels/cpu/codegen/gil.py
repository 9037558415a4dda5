"""How threads that come out of kernels at the same time take turns in Python, without going to sleep.

Only one thread at a time may be in the interpreter. Threads that share a forward pass do the same things at the same time, so
that often one of them comes out of its kernel while the other is still preparing its next. The interpreter would then put it
to sleep, and to wake it takes longer than what it waits for: all in all a tenth of a pass. So a kernel doesn't return
while another thread is between two kernels: it watches a number in memory, the baton, which who leaves a kernel takes up
and who enters one lays down.

The baton is a hint and no lock. A thread that has gone elsewhere with it is waited for as long as
preparing a kernel may take, and no longer.
"""

from __future__ import annotations

import sys

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from vitnp.kernels.cpu.codegen.jit import kernel
from vitnp.kernels.cpu.codegen.simd import I64

# Elsewhere threads take their chances: how machine code there finds a name hasn't been tried.
THERE_IS_ONE = sys.platform == "linux"

# Looks before one goes on without: some tens of microseconds.
LOOKS = 3_000

_baton = np.zeros(8, np.int64)  # a cache line, of which the first number counts
NAME = "vitnp_baton"
# Machine code that is kept on disk can't know an address, so it knows a name.
llvmlite.binding.add_symbol(NAME, _baton.ctypes.data)

# Tells the processor that nothing happens here but waiting, so that it saves power, and leaves its units to the core's other thread.
PAUSE = {"x86_64": "llvm.x86.sse2.pause"}.get(llvmlite.binding.get_default_triple().partition("-")[0])


def _address(builder: ir.IRBuilder) -> ir.Value:
    known = builder.module.globals.get(NAME)
    return known if known is not None else ir.GlobalVariable(builder.module, I64, NAME)


@intrinsic
def pause(context):
    """Waste a moment."""

    def generate(context, builder, signature, arguments):
        if PAUSE:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, PAUSE), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _held(context):
    """Whether somebody has the baton."""

    def generate(context, builder, signature, arguments):
        if not THERE_IS_ONE:
            return ir.Constant(ir.IntType(1), 0)
        return builder.icmp_signed("!=", builder.load_atomic(_address(builder), "monotonic", 8), I64(0))

    return types.boolean(), generate


@intrinsic
def _taken(context):
    """Take the baton; whether somebody had it before."""

    def generate(context, builder, signature, arguments):
        if not THERE_IS_ONE:
            return ir.Constant(ir.IntType(1), 0)
        before = builder.atomic_rmw("xchg", _address(builder), I64(1), "monotonic")
        return builder.icmp_signed("!=", before, I64(0))

    return types.boolean(), generate


@intrinsic
def lay_down(context):
    """A kernel begins: others may go to Python."""

    def generate(context, builder, signature, arguments):
        if THERE_IS_ONE:
            builder.store_atomic(I64(0), _address(builder), "monotonic", 8)
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def take_up():
    """A kernel ends: wait for whoever is in Python, though not for long."""
    looks = 0
    while (_held() or _taken()) and looks < LOOKS:
        pause()
        looks += 1

"""Let threads that leave kernels at about the same time take turns in Python without going to sleep.

Only one thread at a time may hold Python's global interpreter lock (GIL). Threads that share a forward pass do the same
things at the same time, so one of them often leaves its kernel while the other is still preparing its next one. Python
would then put it to sleep, and waking it takes longer than the preparation: in total a tenth of a forward pass. So a
kernel does not return while another thread is between two kernels. It watches a flag in memory, which is set on leaving
a kernel and cleared on entering one.

The flag is a hint, not a lock. If the other thread does something else than start its next kernel, the wait ends after
about the time that starting a kernel may take.
"""

from __future__ import annotations

import sys

import llvmlite.binding
import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen import types
from vitnp.kernels.cpu.codegen.jit import intrinsic, kernel
from vitnp.kernels.cpu.codegen.simd import I64, declare

# On other systems kernels return at once: how machine code finds the symbol has not been tested there.
HAS_FLAG = sys.platform == "linux"

# Reads of the flag before a kernel returns in any case: some tens of microseconds.
MAX_READS = 3_000

_flag = np.zeros(8, np.int64)  # one cache line, of which the first number is the flag
# Machine code that is cached on disk cannot contain an address, so it refers to a symbol.
SYMBOL = "vitnp_outside_kernel"
llvmlite.binding.add_symbol(SYMBOL, _flag.ctypes.data)

# An instruction for loops that wait: it saves power and leaves the core's units to its other hardware thread.
PAUSE = {"x86_64": "llvm.x86.sse2.pause"}.get(llvmlite.binding.get_default_triple().partition("-")[0])


def _address(builder: ir.IRBuilder) -> ir.Value:
    known = builder.module.globals.get(SYMBOL)
    return known if known is not None else ir.GlobalVariable(builder.module, I64, SYMBOL)


@intrinsic
def pause(context):
    """Wait for a few cycles."""

    def generate(context, builder, signature, arguments):
        if PAUSE:
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(declare(builder.module, function, PAUSE), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _is_set(context):
    """Return whether the flag is set."""

    def generate(context, builder, signature, arguments):
        if not HAS_FLAG:
            return ir.Constant(ir.IntType(1), 0)
        return builder.icmp_signed("!=", builder.load_atomic(_address(builder), "monotonic", 8), I64(0))

    return types.boolean(), generate


@intrinsic
def _test_and_set(context):
    """Set the flag, and return whether it was set before."""

    def generate(context, builder, signature, arguments):
        if not HAS_FLAG:
            return ir.Constant(ir.IntType(1), 0)
        before = builder.atomic_rmw("xchg", _address(builder), I64(1), "monotonic")
        return builder.icmp_signed("!=", before, I64(0))

    return types.boolean(), generate


@intrinsic
def enter_kernel(context):
    """Clear the flag: a kernel begins, so other threads may go on in Python."""

    def generate(context, builder, signature, arguments):
        if HAS_FLAG:
            builder.store_atomic(I64(0), _address(builder), "monotonic", 8)
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def leave_kernel():
    """Set the flag at the end of a kernel, after a short wait if another thread is in Python."""
    reads = 0
    while (_is_set() or _test_and_set()) and reads < MAX_READS:
        pause()
        reads += 1

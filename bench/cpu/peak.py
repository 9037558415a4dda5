"""Measure the peak of the machine: fused multiply-adds per second, and bytes copied per second.

The fraction of this peak that a forward pass reaches can be compared between machines, unlike its time. The loops are
written in LLVM's intermediate representation, so that no compiler can simplify them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.cpu.interleave import Plan, interleave

# Independent sums. A multiply-add takes four or five cycles and two can start per cycle, so eight to ten are enough to
# keep the units busy.
SUMS = 16
STEPS = 5_000_000
COPIED_BYTES = 256 << 20

# Each sum gets `steps` multiply-adds. The total is returned so that none of them can be optimized away.
LOOP = """
declare {vector} @{operation}({operands})
declare float @llvm.vector.reduce.fadd.v{lanes}f32(float, {vector})
define float @loop(i64 %steps) {{
start:
  br label %body
body:
  %step = phi i64 [0, %start], [%next, %body]
{phis}
{updates}
  %next = add i64 %step, 1
  %more = icmp ult i64 %next, %steps
  br i1 %more, label %body, label %end
end:
{totals}
  %total = call float @llvm.vector.reduce.fadd.v{lanes}f32(float 0.0, {vector} %a{last})
  ret float %total
}}
"""


def lanes() -> int:
    """Return the number of floats in a vector register of this processor: 16, 8 or 4."""
    features = _features()
    return 16 if features.get("avx512f") else 8 if features.get("fma") else 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of this machine.

    Attributes
    ----------
    fp32_flops, bf16_flops : float
        Floating-point operations per second of all threads together; a multiply-add counts as two. For bf16, pairs of
        products added to float32 by ``vdpbf16ps``; None on processors without AVX512-BF16.
    copied_bytes : float
        Bytes per second that a copy larger than the caches reads, and as many that it writes.
    """

    fp32_flops: float
    bf16_flops: float | None
    copied_bytes: float


def measure(n_threads: int, plan: Plan) -> Limits:
    """Measure the limits, as the best of all rounds.

    Raises
    ------
    Disturbed
        When other programs use the machine.
    """
    work: dict[str, float] = {}
    contenders: dict[str, Callable[[], object]] = {}
    with ThreadPoolExecutor(n_threads) as pool:

        def add(name: str, amount: float, calls: Sequence[Callable[[], object]]) -> None:
            def run() -> None:
                for result in [pool.submit(call) for call in calls]:
                    result.result()

            work[name], contenders[name] = amount, run

        for precision in ("fp32", "bf16") if _features().get("avx512bf16") else ("fp32",):
            run, operations, _engine = loop(precision)
            calls = [functools.partial(run, STEPS)] * n_threads
            add(f"{precision}_flops", float(n_threads * STEPS * operations), calls)
        source = np.ones(COPIED_BYTES // 4, np.float32)
        target = np.zeros_like(source)
        parts = _split(len(source), n_threads)
        add("copied_bytes", source.nbytes, [functools.partial(np.copyto, target[part], source[part]) for part in parts])
        timings = interleave(contenders, plan)
    best = {name: float(f"{work[name] / min(timing.clean):.4g}") for name, timing in timings.items()}
    return Limits(best["fp32_flops"], best.get("bf16_flops"), best["copied_bytes"])


@functools.cache
def loop(precision: str) -> tuple[Callable[[int], float], int, object]:
    """Compile the loop of multiply-adds.

    Parameters
    ----------
    precision : {"fp32", "bf16"}

    Returns
    -------
    run : callable
        Takes a number of steps, and returns the total of SUMS * lanes() sums. Each starts at 0 and becomes
        ``0.999 * sum + 0.001`` in every step (in bf16 all stay 0).
    operations : int
        Floating-point operations per step.
    engine : object
        Owner of the machine code; keep a reference to it.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    vector, pairs = f"<{lanes()} x float>", "<32 x bfloat>"
    if precision == "fp32":
        # The sums approach 1: no overflow and no denormal numbers, which would be slow.
        operation, operands, operations = f"llvm.fma.v{lanes()}f32", [vector] * 3, 2
        rest = f"{vector} {_splat(0.999)}, {vector} {_splat(0.001)}"
    else:
        operation, operands, operations = "llvm.x86.avx512bf16.dpbf16ps.512", [vector, pairs, pairs], 4
        rest = f"{pairs} zeroinitializer, {pairs} zeroinitializer"
    numbers = range(SUMS)
    text = LOOP.format(
        vector=vector, operation=operation, operands=", ".join(operands), lanes=lanes(), last=SUMS - 1,
        phis="\n".join(f"  %s{i} = phi {vector} [zeroinitializer, %start], [%t{i}, %body]" for i in numbers),
        updates="\n".join(f"  %t{i} = call {vector} @{operation}({vector} %s{i}, {rest})" for i in numbers),
        totals="\n".join(f"  %a{i} = fadd {vector} %t{i}, {f'%a{i - 1}' if i else 'zeroinitializer'}" for i in numbers),
    )  # fmt: skip
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features().flatten(), opt=3, jit=True
    )
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_process_triple()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    # ctypes releases the GIL during the call.
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("loop"))
    return run, operations * lanes() * SUMS, engine


def _split(count: int, n_parts: int) -> list[slice]:
    return [slice(count * index // n_parts, count * (index + 1) // n_parts) for index in range(n_parts)]


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_features()


def _splat(value: float) -> str:
    """Write a vector with the same float in every lane; LLVM takes a float as the bits of a double."""
    bits = np.float64(np.float32(value)).view(np.uint64)
    return "<" + ", ".join([f"float 0x{bits:016X}"] * lanes()) + ">"

"""What the machine could do at most: fused multiply-adds a second, and bytes copied a second.

The fraction of this peak that a forward pass reaches says more about a kernel than its time does: it's the same
question on every machine. The loops are written as LLVM's intermediate code, for no compiler may shorten them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.cpu.interleave import Plan, interleave

# Independent sums in flight. A multiply-add takes four or five cycles, and two begin in each: eight to ten keep the
# units busy.
SUMS = 16
STEPS = 5_000_000
COPIED = 256 << 20

# Every sum is multiplied and added to `steps` times; what comes out is the sum of all, or nobody would have to compute
# them.
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
    """Floats in a vector register of this processor: 16, 8 or 4."""
    features = _features()
    return 16 if features.get("avx512f") else 8 if features.get("fma") else 4


@dataclasses.dataclass(frozen=True)
class Limits:
    """What no program can do faster on this machine.

    Attributes
    ----------
    fp32_flops, bf16_flops : float or None
        Floating-point operations a second of all threads together, a multiply-add counted as two. bf16: pairs of
        products added to float32, as ``vdpbf16ps`` does it; None on a processor without AVX512-BF16.
    copied_bytes : float
        Bytes a second that are read, and as many that are written, in a copy of more than caches hold.
    """

    fp32_flops: float
    bf16_flops: float | None
    copied_bytes: float


def measure(threads: int, plan: Plan) -> Limits:
    """Measure the limits; of all rounds the best counts, for nobody is faster than the machine.

    Raises
    ------
    Disturbed
        When other programs use the machine.
    """
    work: dict[str, float] = {}
    contenders: dict[str, Callable[[], object]] = {}
    with ThreadPoolExecutor(threads) as pool:

        def add(name: str, amount: float, calls: Sequence[Callable[[], object]]) -> None:
            def run() -> None:
                for result in [pool.submit(call) for call in calls]:
                    result.result()

            work[name], contenders[name] = amount, run

        for precision in ("fp32", "bf16") if _features().get("avx512bf16") else ("fp32",):
            run, operations, _engine = loop(precision)
            add(f"{precision}_flops", float(threads * STEPS * operations), [functools.partial(run, STEPS)] * threads)
        source = np.ones(COPIED // 4, np.float32)
        target = np.zeros_like(source)
        parts = _parts(len(source), threads)
        add("copied_bytes", source.nbytes, [functools.partial(np.copyto, target[part], source[part]) for part in parts])
        timings = interleave(contenders, plan)
    best = {name: float(f"{work[name] / min(timing.clean):.4g}") for name, timing in timings.items()}
    return Limits(best["fp32_flops"], best.get("bf16_flops"), best["copied_bytes"])


@functools.cache
def loop(precision: str) -> tuple[Callable[[int], float], int, object]:
    """The loop of multiply-adds as machine code.

    Parameters
    ----------
    precision : {"fp32", "bf16"}

    Returns
    -------
    run : callable
        Takes a number of steps; gives the total of SUMS * lanes() sums, each of which was 0 at first and became 0.999
        of itself plus 0.001 in every step (in bf16 all stay 0).
    operations : int
        In one step.
    engine : object
        Keeps the machine code alive.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    vector, pairs = f"<{lanes()} x float>", "<32 x bfloat>"
    if precision == "fp32":
        # Sums that approach 1 and stay there, so that no step takes longer for its numbers.
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
    # Called through ctypes it leaves the interpreter's lock to the other threads.
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("loop"))
    return run, operations * lanes() * SUMS, engine


def _parts(count: int, threads: int) -> list[slice]:
    return [slice(count * index // threads, count * (index + 1) // threads) for index in range(threads)]


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_features()


def _splat(value: float) -> str:
    """A vector with the same float in every lane; the code wants floats as the bits of a double."""
    bits = np.float64(np.float32(value)).view(np.uint64)
    return "<" + ", ".join([f"float 0x{bits:016X}"] * lanes()) + ">"

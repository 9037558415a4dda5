"""The emulator that runs CUDA kernels on the CPU: its results, and the errors that its check mode detects."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator import BuildError, KernelError, RawModule, TranslationError

# One kernel for each fault; reverse(ORDER) is right when ORDER is a barrier.
FAULTS = """
#define N 64
extern "C" __global__ void __launch_bounds__(N) reverse(const int* x, int* y, int n) {
    __shared__ int room[N];
    const int t = threadIdx.x;
    if (t < n) room[t] = x[t];
    ORDER
    if (t < n) y[t] = room[n - 1 - t];
}
extern "C" __global__ void last_block(const float* x, float* part, unsigned* done, float* out) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        part[blockIdx.x] = x[blockIdx.x];
        FENCE
        last = atomicAdd(done, 1u) == gridDim.x - 1;
        if (last) {
            float sum = 0.f;
            for (int i = 0; i < gridDim.x; i++) sum += part[i];
            *out = sum;
        }
    }
}
extern "C" __global__ void count(int* total) { ADD }
extern "C" __global__ void warp_sum(const int* x, int* y) {
    int v = x[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(MASK, v, step);
    y[threadIdx.x] = v;
}
extern "C" __global__ void part_way(int* y) { if (threadIdx.x < LIMIT) __syncthreads(); y[threadIdx.x] = threadIdx.x; }
extern "C" __global__ void four(const float* x, float* y) { *(float4*)y = *(const float4*)(x + OFFSET); }
extern "C" __global__ void into_const(const float* x, float* y) { *y = 1.f; if (WRITES) *(float*)x = 2.f; }
extern "C" __global__ void later(const float* x, float* y) {
    extern __shared__ float room[];
    emu_copy_later(room + threadIdx.x * 4, x + threadIdx.x * 4, 16);
    emu_close_copies();
    WAIT
    y[threadIdx.x] = room[threadIdx.x * 4];
}
"""
RIGHT = {
    "ORDER": "__syncthreads();",
    "FENCE": "__threadfence();",
    "ADD": "atomicAdd(total,1);",
    "MASK": "0xffffffffu",
    "LIMIT": "64",
    "OFFSET": "0",
    "WRITES": "0",
    "WAIT": "emu_await_copies(0);",
}


def module(mode: str = "check", **wrong: str) -> RawModule:
    return RawModule(FAULTS, tuple(f"-D{name}={value}" for name, value in (RIGHT | wrong).items()), mode, "faults.cu")


def run(name: str, module: RawModule, **options) -> object:
    """Launches a kernel of the file with arguments that suit it, and returns what it has written."""
    whole, floats = np.arange(64, dtype=np.int32), np.arange(64, dtype=np.float32)
    out, result = np.zeros(64, np.int32), np.zeros(4, np.float32)
    grid, block, arguments, found, shared = {
        "reverse": (1, 64, (whole, out, np.int32(50)), out, 0),
        "last_block": (9, 32, (floats, np.zeros(9, np.float32), np.zeros(1, np.uint32), result), result, 0),
        "count": (3, 40, (out,), out, 0),
        "warp_sum": (1, 64, (whole, out), out, 0),
        "part_way": (1, 64, (out,), out, 0),
        "four": (1, 1, (floats, result), result, 0),
        "into_const": (1, 1, (floats, result), result, 0),
        "later": (1, 4, (floats, result), result, 64),
    }[name]
    module.get_function(name)((grid,), (block,), arguments, shared_mem=shared, **options)
    return found


@pytest.mark.parametrize("mode", ["fast", "check"])
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_right_kernels_are_clean_and_right(mode, order):
    right = module(mode)
    assert run("reverse", right, order=order)[:50].tolist() == list(range(49, -1, -1))
    assert run("last_block", right, order=order)[0] == sum(range(9))
    assert run("count", right, order=order)[0] == 120
    assert run("warp_sum", right, order=order).tolist() == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
    assert run("part_way", right, order=order).tolist() == list(range(64))
    assert run("four", right, order=order).tolist() == [0, 1, 2, 3]
    assert run("later", right, order=order).tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize(
    "name, wrong, words",
    [
        ("reverse", {"ORDER": ";"}, r"race: .* at faults.cu:8 against faults.cu:6 \[room"),
        ("last_block", {"FENCE": ""}, "race: read after write between blocks at faults.cu:18 against faults.cu:13"),
        ("count", {"ADD": "++*total;"}, "race: .* at faults.cu:23"),
        ("warp_sum", {"MASK": "0xffffu"}, "lane not named in its own warp mask at faults.cu:26"),
        ("part_way", {"LIMIT": "40"}, None),
        ("four", {"OFFSET": "1"}, "misaligned access at faults.cu:30"),
        ("four", {"OFFSET": "64"}, r"out-of-bounds read at faults.cu:30 \[16 bytes, 0 bytes past the end of x"),
        ("four", {"OFFSET": "(-4)"}, r"out-of-bounds read at faults.cu:30 \[16 bytes, 16 bytes before x"),
        ("into_const", {"WRITES": "1"}, "write to const buffer at faults.cu:31"),
        ("later", {"WAIT": ""}, None),
    ],
)
def test_faults_are_named_by_their_lines(name, wrong, words):
    if (
        words is None
    ):  # threads that have returned don't count at a barrier, and a copy that nobody awaits leaves what was there
        right, found = run(name, module()), run(name, module(**wrong))
        assert (found.tolist() == right.tolist()) == (name == "part_way")
        return
    with pytest.raises(KernelError, match=words):
        run(name, module(**wrong))


def test_reading_what_nobody_wrote():
    with pytest.raises(KernelError, match=r"read of uninitialized memory at faults.cu:8 \[room"):
        run("reverse", module(ORDER="__syncthreads();n=60;"))
    with pytest.raises(KernelError, match=r"read of uninitialized memory at faults.cu:31 \[y"):
        run("into_const", module(WRITES="(*y=y[1],0)"), uninit=("y",))


def test_threads_at_different_barriers_and_threads_that_never_come():
    code = """extern "C" __global__ void split(int* y) {
        if (threadIdx.x < 32) __syncthreads();
        else
            __syncthreads();
        y[threadIdx.x] = 1;
    }
    extern "C" __global__ void stuck(int* y) {
        if (threadIdx.x == 0) __syncwarp();
        else if (threadIdx.x < 32) __syncthreads();
        y[threadIdx.x] = 1;
    }"""
    both = RawModule(code, (), "check", "split.cu")
    with pytest.raises(KernelError, match="barrier reached from different source lines"):
        both.get_function("split")((1,), (64,), (np.zeros(64, np.int32),))
    with pytest.raises(KernelError, match="deadlock at split.cu"):
        both.get_function("stuck")((1,), (32,), (np.zeros(32, np.int32),))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((np.zeros(4, np.int32), np.zeros(4, np.int32)), "takes 3 arguments, not 2"),
        ((np.zeros(4, np.float32), np.zeros(4, np.int32), np.int32(4)), "x wants an array of i4, not of float32"),
        ((np.zeros(4, np.int32), np.zeros(8, np.int32)[::2], np.int32(4)), "y wants a C-contiguous array"),
        ((np.zeros(4, np.int32), np.zeros(4, np.int32), np.int64(4)), "n wants a scalar of type i4, not int64"),
        ((np.zeros(4, np.int32), np.zeros(4, np.int32), 4), "n wants a NumPy scalar of type i4, not int"),
    ],
)
def test_arguments_that_a_gpu_would_misread_are_refused(arguments, words):
    with pytest.raises(TypeError, match=words):
        module().get_function("reverse")((1,), (64,), arguments)


def test_launches_that_a_gpu_would_refuse_are_refused():
    x = np.zeros(4, np.int32)
    kernel = module().get_function("reverse")
    with pytest.raises(KernelError, match="exceeds its __launch_bounds__ of 64"):
        kernel((1,), (65,), (x, x, np.int32(4)))
    with pytest.raises(KernelError, match="exceed max_dynamic_shared_size_bytes"):
        kernel((1,), (64,), (x, x, np.int32(4)), shared_mem=49 * 1024)
    kernel.max_dynamic_shared_size_bytes = 300 * 1024
    with pytest.raises(KernelError, match="exceed max_dynamic_shared_size_bytes"):
        kernel((1,), (64,), (x, x, np.int32(4)), shared_mem=228 * 1024)
    with pytest.raises(KernelError, match="invalid grid"):
        kernel((0,), (64,), (x, x, np.int32(4)))


def test_half_precision_rounds_as_numpy_does():
    code = """#include <cuda_fp16.h>
    extern "C" __global__ void halves(const float* x, __half* y, float* z) {
        y[threadIdx.x] = __float2half_rn(x[threadIdx.x]);
        const __half2 product = __hmul2(__floats2half2_rn(x[threadIdx.x], 3.f), __half2half2(y[threadIdx.x]));
        const float2 both = __half22float2(product);
        z[threadIdx.x] = both.x + both.y;
    }"""
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    y, z = np.empty(64, np.float16), np.empty(64, np.float32)
    RawModule(code, (), "check", "halves.cu").get_function("halves")((1,), (64,), (x, y, z), uninit=("y", "z"))
    half = x.astype(np.float16)
    np.testing.assert_array_equal(y, half)
    np.testing.assert_array_equal(z, (half * half).astype(np.float32) + (np.float16(3) * half).astype(np.float32))


def test_what_it_cannot_do_is_said():
    with pytest.raises(TranslationError, match="can't"):
        RawModule('extern "C" __global__ void k(int* y) { __shared__ int a = 3; y[0] = a; }', name="bad.cu")
    with pytest.raises(BuildError, match="bad.cu:1"):
        RawModule('extern "C" __global__ void k(int* y) { y[0] = nothing; }', name="bad.cu")
    with pytest.raises(KeyError, match="no kernel missing; it has"):
        module().get_function("missing")

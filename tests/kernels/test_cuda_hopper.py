"""Instructions of compute capability 9.0 against NVIDIA's documentation: where wgmma and the tensor memory accelerator
expect and put numbers, and what the PTX as written hands to which operand.

Layouts here are those of the PTX ISA, written out in NumPy: "Matrix fragments for wgmma.mma_async.m64nNk16", "Canonical
layouts" and the swizzle of 128 bytes. The emulator runs the probes; under ``pytest -m gpu`` an H100 or H200 runs the
PTX itself. Numbers are small and whole, so that results are exact.
"""

from __future__ import annotations

import re
import types

import numpy as np
import pytest
from cuda_emulator import KernelError
from vitnp.kernels.cuda import loader

from tests.kernels.test_cuda_attention_wgmma import cupy  # noqa: F401  (a fixture)
from tests.kernels.test_cuda_layouts import assembly

THREAD = np.arange(128)[:, None]


def place_of_result(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of result i of each thread."""
    i = np.arange(count)
    lane = THREAD % 32
    return 16 * (THREAD // 32) + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


def place_of_left(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of number i of each thread's left operand, 8 numbers for each 16 columns."""
    i = np.arange(count)
    lane = THREAD % 32
    row = 16 * (THREAD // 32) + lane // 4 + 8 * (i // 2 % 2)
    return row, 2 * (lane % 4) + i % 2 + 8 * (i // 4 % 2) + 16 * (i // 8)


def swizzled(matrix: np.ndarray) -> np.ndarray:
    """A matrix with rows of 64 numbers as it lies in shared memory: chunk c of row r stands at c XOR (r mod 8)."""
    out = np.empty_like(matrix).reshape(len(matrix), 8, 8)
    for row in range(len(matrix)):
        for chunk in range(8):
            out[row, chunk ^ row % 8] = matrix[row, 8 * chunk : 8 * chunk + 8]
    return out.reshape(matrix.shape)


def whole(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 9, shape).astype(np.float16)


# --- The PTX as written -----------------------------------------------------------------------------------------------


def pieces(instruction: str, *options: str) -> list[tuple[str, list[str]]]:
    return [piece for piece in assembly("attention_wgmma.cu", 90, *options) if instruction in piece[0]]


def index(name: str) -> int:
    """Of an operand such as d[16 + 4 + 1]."""
    return sum(map(int, re.fullmatch(r"\w\[([\d\s+]+)\]", name)[1].split("+")))


@pytest.mark.parametrize("options, kind", [((), "f16"), (("-DBFLOAT16",), "bf16")])
def test_the_products_name_their_operands_in_order(options, kind):
    shared, registers = pieces("wgmma.mma_async", *options)
    for (template, names), columns, left in ((shared, 128, 1), (registers, 64, 4)):
        results = columns // 2
        first = ", ".join(f"%{i}" for i in range(results))
        operands = f"%{results}" if left == 1 else "{" + ", ".join(f"%{results + i}" for i in range(left)) + "}"
        transposed = "0, 0" if left == 1 else "1"  # of both operands, or of the right one alone
        product = (
            rf"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
            rf"{{{first}}}, {operands}, %{results + left}, added, 1, 1, {transposed};"
        )
        compare = f"setp.ne.b32 added, %{results + left + 1}, 0;"
        assert template.replace("\\n", "") == "{.reg .pred added;" + compare + product + "}"
        assert list(map(index, names[:results])) == list(range(results))
        assert {name[0] for name in names[:results]} == {"d"}
        rest = ["a"] if left == 1 else [f"a[{i}]" for i in range(4)]
        assert names[results:] == [*rest, "b", "added"]


@pytest.mark.parametrize(
    "instruction, names",
    [
        ("mbarrier.init.shared::cta.b64 [%0], %1;", ["barrier", "count"]),
        ("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;", ["barrier", "bytes"]),
        ("mbarrier.arrive.shared::cta.b64 _, [%0];", ["barrier"]),
        ("mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;", ["barrier", "parity"]),
        (
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
            "[%0], [%1, {%2, %3, %4}], [%5];",
            ["target", "map", "column", "row", "image", "barrier"],
        ),
        ("fence.proxy.async.shared::cta;", []),
        ("bar.sync %0, %1;", ["number", "threads"]),
        ("bar.arrive %0, %1;", ["number", "threads"]),
    ],
)
def test_other_instructions_name_their_operands_in_order(instruction, names):
    ((_, found),) = pieces(instruction)
    assert [name for name in found if name != "memory"] == names


# --- The instructions, emulated or on a GPU ---------------------------------------------------------------------------

PROBES = """
// Copies tiles to the first multiple of 1024 bytes of shared memory, for wgmma to see.
__device__ unsigned fill(const uint4* tiles, int count) {
    extern __shared__ uint4 memory[];
    const unsigned start = shared_address(memory), room = (start + 1023) / 1024 * 1024;
    for (int i = threadIdx.x; i < count; i += 128) memory[(room - start) / 16 + i] = tiles[i];
    fence_async();  // for the products
    __syncthreads();
    return room;
}
extern "C" __global__ void __launch_bounds__(128) probe_shared(const uint4* tiles, float* out) {
    const unsigned room = fill(tiles, 192 * 8);
    float d[64];
    products_fence();
    for (int i = 0; i < 4; i++)
        multiply_shared(d, further(matrix_at(room), 32 * i), further(matrix_at(room + 8192), 32 * i), i > 0);
    products_commit();
    products_wait(0);
    settled(d);
    for (int i = 0; i < 64; i++) out[threadIdx.x * 64 + i] = d[i];
}
extern "C" __global__ void __launch_bounds__(128)
probe_registers(const uint4* tiles, const unsigned* left, float* out) {
    const unsigned room = fill(tiles, 128 * 8);
    float d[32];
    unsigned a[32];
    for (int i = 0; i < 32; i++) a[i] = left[threadIdx.x * 32 + i], d[i] = 1.0f;
    products_fence();
    for (int i = 0; i < 8; i++) multiply_registers(d, a + 4 * i, further(matrix_at(room), 2048 * i), 1);
    products_commit();
    products_wait(0);
    settled(d);
    settled(a);
    for (int i = 0; i < 32; i++) out[threadIdx.x * 32 + i] = d[i];
}
extern "C" __global__ void __launch_bounds__(128)
probe_box(const __grid_constant__ TensorMap map, int column, int row, int image, uint4* out) {
    extern __shared__ uint4 memory[];
    const unsigned start = shared_address(memory), room = (start + 1023) / 1024 * 1024, barrier = room + TILE;
    if (threadIdx.x == 0) {
        barrier_init(barrier, 1);
        fence_async();
        barrier_expect(barrier, TILE);
        copy_box(room, &map, column, row, image, barrier);
    }
    __syncthreads();
    barrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < TILE / 16; i += 128) out[i] = memory[(room - start) / 16 + i];
}
"""


def probe(name: str, before: str = "", after: str = ""):
    """A kernel, with a defect if something is replaced."""
    from vitnp.kernels.cuda import cubin

    assert before in PROBES
    code = loader.source("attention_wgmma.cu") + PROBES.replace(before or "\0", after)
    function = cubin.module(code, "probes.cu", "sm_90a", ("-std=c++17",)).get_function(name)
    function.max_dynamic_shared_size_bytes = 64 * 1024
    return loader.Kernel(function)


def test_a_product_of_two_matrices_in_shared_memory(cupy):  # noqa: F811
    left, right = whole(0, 64, 64), whole(1, 128, 64)  # the rows of the right one are columns of the product
    tiles = np.concatenate([swizzled(left), swizzled(right)]).view(np.uint32).reshape(-1, 4)
    out = cupy.empty((128, 64), np.float32)
    probe("probe_shared")((1,), (128,), (cupy.asarray(tiles), out), shared_mem=64 * 1024)
    wanted = left.astype(np.float32) @ right.T.astype(np.float32)
    np.testing.assert_array_equal(out.get(), wanted[place_of_result(64)])


def test_a_product_of_a_matrix_in_registers(cupy):  # noqa: F811
    left, right = whole(2, 64, 128), whole(3, 128, 64)
    registers = np.ascontiguousarray(left[place_of_left(64)]).view(np.uint32)
    tiles = swizzled(right).view(np.uint32).reshape(-1, 4)
    out = cupy.empty((128, 32), np.float32)
    arguments = (cupy.asarray(tiles), cupy.asarray(registers), out)
    probe("probe_registers")((1,), (128,), arguments, shared_mem=64 * 1024)
    wanted = 1 + left.astype(np.float32) @ right.astype(np.float32)
    np.testing.assert_array_equal(out.get(), wanted[place_of_result(32)])


@pytest.mark.parametrize("column, row, image", [(0, 0, 0), (64, 0, 1), (64, 128, 1), (0, 300, 1)])
def test_a_box_arrives_swizzled_and_zero_past_the_end(cupy, column, row, image):  # noqa: F811
    from vitnp.kernels.cuda import tensor_map

    fused = cupy.asarray(whole(4, 2, 150, 3 * 128))
    part = fused[:, :, 128:256]
    out = cupy.empty((1024, 4), np.uint32)
    arguments = (tensor_map.encode(part, 64, 128), np.int32(column), np.int32(row), np.int32(image), out)
    probe("probe_box")((1,), (128,), arguments, shared_mem=64 * 1024)
    wanted = np.zeros((128, 64), np.float16)
    there = cupy.asnumpy(part)[image, row : row + 128, column : column + 64]
    wanted[: len(there)] = there
    np.testing.assert_array_equal(out.get().view(np.float16).reshape(128, 64), swizzled(wanted))


@pytest.mark.slow(reason="compiles every planted defect")
@pytest.mark.parametrize(
    "name, before, after, words",
    [
        ("probe_shared", "fence_async();  // for the products", "", "a store that the async proxy may not see"),
        ("probe_shared", "products_wait(0);", "", "products were under way when their block ended"),
        ("probe_shared", "products_fence();", "", "a product without a fence"),
        ("probe_shared", "matrix_at(room)", "matrix_at(room + 128)", "does not begin where its swizzle does"),
        ("probe_shared", "products_commit();\n", "products_commit(); d[0] = 1.0f;\n", "register was changed while"),
        ("probe_box", "barrier_wait(barrier, 0);", "", "race: read after write"),
        ("probe_box", "barrier_expect(barrier, TILE);", "barrier_expect(barrier, 2 * TILE);", "deadlock"),
        ("probe_box", "barrier_expect(barrier, TILE);", "barrier_arrive(barrier);", "race: read after write"),
        ("probe_box", "        fence_async();\n", "", "mbarrier that the async proxy may not see"),
        ("probe_box", "copy_box(room,", "copy_box(room + 64,", "no multiple of 128"),
        ("probe_box", "barrier_init(barrier, 1);", "", "mbarrier that has not been initialized"),
    ],
)
def test_faults_are_named(cupy, name, before, after, words):  # noqa: F811
    if not isinstance(cupy.cuda, types.SimpleNamespace):
        pytest.skip("the emulator's checks")
    from vitnp.kernels.cuda import tensor_map

    tiles, out = cupy.asarray(np.zeros((192 * 8, 4), np.uint32)), cupy.empty((128, 64), np.float32)
    box = (tensor_map.encode(cupy.asarray(whole(4, 1, 150, 64)), 64, 128), *[np.int32(0)] * 3, out.view(np.uint32))
    with pytest.raises(KernelError, match=words):
        probe(name, before, after)((1,), (128,), (tiles, out) if name == "probe_shared" else box, shared_mem=64 * 1024)


def test_maps_that_a_driver_refuses(cupy):  # noqa: F811
    from vitnp.kernels.cuda import tensor_map

    x = cupy.asarray(np.zeros((2, 9, 72), np.float16))
    assert tensor_map.fits(x[:, :, :64]) and not tensor_map.fits(x[:, :, 1:65]) and not tensor_map.fits(x[:, :, ::2])
    assert not tensor_map.fits(x.astype(np.float32)) and not tensor_map.fits(x[:, ::-1])
    for columns, rows in ((128, 64), (64, 257)):
        with pytest.raises(RuntimeError, match="cuTensorMapEncodeTiled failed with status 1"):
            tensor_map.encode(x, columns, rows)

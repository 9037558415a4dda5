"""Which lane holds what in the tensor cores' instructions: the PTX as written and its twins in C++, against NVIDIA's
documentation.

Tables here are those of the PTX ISA, "Matrix fragments for mma" and "ldmatrix". The twins run on the emulator; under
``pytest -m gpu`` the same probes run the PTX itself. Numbers are small and whole, so that results are exact.
"""

from __future__ import annotations

import re
import subprocess

import numpy as np
import pytest
from cuda_emulator.translate import INCLUDE
from vitnp.kernels.cuda import loader

LANE = np.arange(32)
GROUP, IN_GROUP = LANE >> 2, LANE & 3


def half_pairs(count: int, rows, columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """Registers of two 16-bit numbers each: where number i of a lane stands in its matrix."""
    return [(rows(i), columns(i)) for i in range(count)]


# Row and column of each of a lane's numbers, in the order of the registers.
A_K16 = half_pairs(8, lambda i: GROUP + 8 * (i // 2 % 2), lambda i: 2 * IN_GROUP + (i & 1) + 8 * (i // 4))
B_K16 = half_pairs(4, lambda i: 2 * IN_GROUP + (i & 1) + 8 * (i // 2), lambda i: GROUP)
A_K8 = half_pairs(4, lambda i: GROUP + 8 * (i // 2), lambda i: 2 * IN_GROUP + (i & 1))
B_K8 = half_pairs(2, lambda i: 2 * IN_GROUP + i, lambda i: GROUP)
A_TF32 = [(GROUP + 8 * (i % 2), IN_GROUP + 4 * (i // 2)) for i in range(4)]
B_TF32 = [(IN_GROUP + 4 * i, GROUP) for i in range(2)]
RESULT = [(GROUP + 8 * (i // 2), 2 * IN_GROUP + (i & 1)) for i in range(4)]
FRAGMENTS = {"m16n8k16": (16, A_K16, B_K16), "m16n8k8": (8, A_K8, B_K8), "tf32": (8, A_TF32, B_TF32)}


def to_bits(values: np.ndarray, kind: str) -> np.ndarray:
    single = values.astype(np.float32).view(np.uint32)
    return {"f16": values.astype(np.float16).view(np.uint16), "bf16": single >> 16, "tf32": single}[kind]


def from_bits(bits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << (16 if kind == "bf16" else 0)).view(np.float32).astype(np.float64)


def registers(matrix: np.ndarray, places: list, kind: str) -> np.ndarray:
    """The registers (lanes, count) that hold a matrix."""
    numbers = [to_bits(matrix[place], kind).astype(np.uint32) for place in places]
    if kind != "tf32":
        numbers = [low | high << 16 for low, high in zip(numbers[::2], numbers[1::2])]
    return np.stack(numbers, axis=1)


def matrix(words: list[np.ndarray], places: list, shape: tuple[int, int], kind: str) -> np.ndarray:
    """And back."""
    if kind != "tf32":
        words = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    found = np.full(shape, np.nan)
    for word, place in zip(words, places, strict=True):
        found[place] = from_bits(word, kind)
    return found


def operands(depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(depth)
    return tuple(rng.integers(-9, 9, shape).astype(float) for shape in ((16, depth), (depth, 8), (16, 8)))


# --- The PTX as written ----------------------------------------------------------------------------------------------


def assembly(file: str, arch: int, *options: str) -> list[tuple[str, list[str]]]:
    """Each piece of inline PTX that an architecture gets, and the C++ names of its operands, outputs first."""
    command = ["g++", "-E", "-P", "-x", "c++", f"-I{INCLUDE / 'stubs'}", f"-D__CUDA_ARCH__={arch}0", *options, "-"]
    text = subprocess.run(command, input=loader.source(file), capture_output=True, text=True, check=True).stdout
    found = []
    for template, bound in re.findall(r'\basm\s*(?:volatile\s*)?\(\s*((?:"[^"]*"\s*)+)([^;]*)\)\s*;', text):
        outputs, inputs = (bound.split(":") + [""] * 3)[1:3]
        names = re.findall(r'"[+=]?\w"\s*\(([^"]*?)\)\s*(?:,|$)', f"{outputs.strip()}, {inputs.strip()}")
        found.append(("".join(re.findall(r'"([^"]*)"', template)), [name.strip() for name in names]))
    return found


FOUR_LISTS = r",\s*".join([r"\{([^}]*)\}"] * 4)
MULTIPLY = re.compile(rf"mma\.sync\.aligned\.(m16n8k\d+)\.row\.col\.f32\.(\w+)\.\2\.f32\s*{FOUR_LISTS}")


def execute(template: str, names: list[str], known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What products in a piece of PTX leave in its operands, by the documented layouts."""
    values = {f"%{i}": known.get(name) for i, name in enumerate(names)}
    for shape, kind, *lists in MULTIPLY.findall(template):
        depth, left, right = FRAGMENTS["tf32" if kind == "tf32" else shape]
        d, a, b, c = ([name.strip() for name in part.split(",")] for part in lists)
        product = matrix([values[name] for name in a], left, (16, depth), kind) @ matrix(
            [values[name] for name in b], right, (depth, 8), kind
        )
        for name, before, place in zip(d, c, RESULT, strict=True):
            values[name] = product[place] + values[before]
    return {name: values[f"%{i}"] for i, name in reversed(list(enumerate(names)))}


@pytest.mark.parametrize(
    "file, arch, options, shape, kind",
    [
        ("tensor_core.cuh", 80, (), "m16n8k16", "f16"),
        ("tensor_core.cuh", 90, (), "tf32", "tf32"),
        ("attention.cu", 90, (), "m16n8k16", "f16"),
        ("attention.cu", 80, ("-DBFLOAT16",), "m16n8k16", "bf16"),
        ("attention.cu", 75, (), "m16n8k16", "f16"),  # as two products of half the depth
    ],
)
def test_the_ptx_multiplies_what_it_is_given(file, arch, options, shape, kind):
    depth, left, right = FRAGMENTS[shape]
    a, b, c = operands(depth)
    pieces = [piece for piece in assembly(file, arch, *options) if "mma.sync" in piece[0] and f".{kind}." in piece[0]]
    assert len(pieces) == 1
    template, names = pieces[0]
    known = {f"a[{i}]": word for i, word in enumerate(registers(a, left, kind).T)}
    known |= {name: word for i, word in enumerate(registers(b, right, kind).T) for name in (f"b[{i}]", f"b{i}")}
    known |= {name: c[place] for i, place in enumerate(RESULT) for name in (f"c[{i}]", f"c{i}")}
    found = execute(template, names, known)
    for i, place in enumerate(RESULT):
        np.testing.assert_array_equal(found[f"c[{i}]"], (a @ b + c)[place])


def test_the_ptx_loads_into_registers_in_order():
    loads = [piece for piece in assembly("attention.cu", 90) if "ldmatrix" in piece[0]]
    assert [".trans" in template for template, _ in loads] == [True, False]
    for template, names in loads:
        form = template.replace(".trans", "")
        assert form == "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        assert names == ["word[0]", "word[1]", "word[2]", "word[3]", "place"]


# --- The twins; on a GPU, what the PTX does --------------------------------------------------------------------------

PRODUCT = """
extern "C" __global__ void probe(const unsigned* a, const unsigned* b, const float* c, float* out) {
    unsigned left[4], right[2];
    float sum[4];
    for (int i = 0; i < 4; i++) left[i] = a[4 * threadIdx.x + i], sum[i] = c[4 * threadIdx.x + i];
    for (int i = 0; i < 2; i++) right[i] = b[2 * threadIdx.x + i];
    MULTIPLY;
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = sum[i];
}"""
LOAD = """
template <bool transposed> __device__ void load(const unsigned short* in, unsigned* out) {
    __shared__ __align__(16) unsigned short tile[256];
    for (int i = 0; i < 8; i++) tile[8 * threadIdx.x + i] = in[8 * threadIdx.x + i];
    __syncthreads();
    unsigned word[4];
    load_matrices<transposed>(word, place_of(reinterpret_cast<const Half*>(tile + 8 * threadIdx.x)));
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = word[i];
}
extern "C" __global__ void probe_rows(const unsigned short* in, unsigned* out) { load<false>(in, out); }
extern "C" __global__ void probe_columns(const unsigned short* in, unsigned* out) { load<true>(in, out); }
"""


@pytest.mark.parametrize(
    "file, options, call, shape, kind",
    [
        ("tensor_core.cuh", (), "multiply_half(sum, left, right)", "m16n8k16", "f16"),
        ("tensor_core.cuh", (), "multiply_tf32(sum, left, right)", "tf32", "tf32"),
        ("attention.cu", (), "multiply(sum, left, right[0], right[1], true)", "m16n8k16", "f16"),
        ("attention.cu", ("-DBFLOAT16",), "multiply(sum, left, right[0], right[1], true)", "m16n8k16", "bf16"),
    ],
)
def test_products(cupy, file, options, call, shape, kind):
    depth, left, right = FRAGMENTS[shape]
    a, b, c = operands(depth)
    code = "#include <cuda_fp16.h>\n" + loader.source(file) + PRODUCT.replace("MULTIPLY", call)
    out = cupy.empty((32, 4), np.float32)
    sums = np.stack([c[place] for place in RESULT], axis=1).astype(np.float32)
    there = (registers(a, left, kind), registers(b, right, kind), sums)
    probe = cupy.RawModule(code=code, options=("-std=c++17", *options)).get_function("probe")
    probe((1,), (32,), (*map(cupy.asarray, there), out))
    np.testing.assert_array_equal(out.get(), np.stack([(a @ b + c)[place] for place in RESULT], axis=1))


def test_loads_of_matrices(cupy):
    tile = np.arange(256, dtype=np.uint16)
    matrices = tile.reshape(4, 8, 8).astype(np.uint32)
    module = cupy.RawModule(code=loader.source("attention.cu") + LOAD, options=("-std=c++17",))
    for name, seen in (("probe_rows", matrices), ("probe_columns", matrices.transpose(0, 2, 1))):
        out = cupy.empty((32, 4), np.uint32)
        module.get_function(name)((1,), (32,), (cupy.asarray(tile), out))
        low, high = seen[:, GROUP, 2 * IN_GROUP], seen[:, GROUP, 2 * IN_GROUP + 1]
        np.testing.assert_array_equal(out.get(), (low | high << 16).T)

"""Every CUDA kernel compiled by NVIDIA's own compiler for five generations of GPUs: no error, no spills, no stack.

Needs the compiler's wheels and no GPU; what it shows is that kernels compile, not that they run.
"""

from __future__ import annotations

import importlib.resources
import os

import pytest
from cuda_emulator import nvrtc
from vitnp.kernels.cuda import loader, tiles, transformer

pytestmark = pytest.mark.slow(reason="compiles every CUDA file for five generations of GPUs")

ARCHITECTURES = (75, 80, 90, 100, 120)
# Bytes that a block may have.
SHARED = {75: 64 * 1024, 80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
NEWEST = 100  # and later
KNOWS_NEWEST = (12, 8)  # the first NVRTC that does
# What a file is compiled for, if for no other GPUs than these: instructions that later generations do not have.
TARGETS = {"attention_wgmma": {90: "90a"}}
CUPY_ADDS = ("--device-as-default-execution-space", "-ftz=true")  # to the options of any kernel, in version 14
WIDTHS = (192, 384, 768, 1024, 1536)


def tiled(arch: int, define: str, extra_each: int) -> set[tuple[str, ...]]:
    """What tiles.py asks for: several numbers of clusters for one width; on the newest GPU all widths of ViTs."""
    pairs = {(384, 8), (384, 256), (50, 27)} if arch > 75 else {(50, 27)}
    if arch == 90:
        pairs |= {(width, 27) for width in WIDTHS}
    plans = (
        tiles._plan(w, k, half, extra_each * k * w, define, arch, SHARED[arch])
        for w, k in pairs
        for half in (False, True)
    )
    return {plan.options for plan in plans}


def halves(*options: str) -> set[tuple[str, ...]]:
    return {options, ("-DHALF", *options)}


def variants(file: str, arch: int) -> set[tuple[str, ...]]:
    """The options that a file is compiled with."""
    if file == "kmeans":
        return tiled(arch, "SUMS_SHARED", 4)
    if file == "similarity":
        lists = 8 * tiles.THREADS * 5
        return {
            tiles._plan(w, 10_000, half, lists, "LISTS_SHARED", arch, SHARED[arch]).options
            for w in (384, 50)
            for half in (False, True)
        }
    if file == "layernorm":
        return halves().union(*(halves(f"-DWIDTH={width}") for width in (384, 1536, 1920, transformer._MAX_WIDTH)))
    return {
        "attention": {(), ("-DROTARY",)} | ({("-DBFLOAT16",), ("-DBFLOAT16", "-DROTARY")} if arch >= 80 else set()),
        "attention_wgmma": {rotary + bits for rotary in ((), ("-DROTARY",)) for bits in ((), ("-DBFLOAT16",))},
        "bfloat16": {()},
        "crf": {("-DFEATURES=2",), ("-DFEATURES=5",)},
        "gelu": {*halves(), ("-DPER_THREAD=4",), ("-DHALF", "-DPER_THREAD=8")},
        "guided": {()},
        "image": {()},
        "image_level": {
            (f"-DVECTOR={vector}", *shared) for vector in (1, 4) for shared in ((), ("-DCENTROIDS_SHARED",))
        },
        "rotation": {
            ("-DPER_THREAD=4",),
            ("-DPER_THREAD=1",),
            ("-DHALF", "-DPER_THREAD=8"),
            ("-DHALF", "-DPER_THREAD=1"),
        },
        "solver": {()},
        "sort": {()},
    }[file]


def files() -> list[str]:
    return sorted(
        path.name[:-3]
        for path in importlib.resources.files("vitnp.kernels.cuda").joinpath("src").iterdir()
        if path.name.endswith(".cu")
    )


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if nvrtc.find() is None:
        missing = "NVRTC's wheels are absent: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12"
        if os.environ.get("VITNP_REQUIRE_DATA") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.mark.parametrize("file, arch", [(f, arch) for f in files() for arch in TARGETS.get(f, ARCHITECTURES)])
def test_compiles_without_spills_or_stack(file, arch):
    code, faults = loader.source(f"{file}.cu"), []
    if arch >= NEWEST and nvrtc.version() < KNOWS_NEWEST:
        pytest.skip("this NVRTC doesn't know the newest GPUs")
    for options in sorted(variants(file, arch)):
        target = TARGETS.get(file, {}).get(arch, arch)
        usage = nvrtc.compile_kernels(code, f"{file}.cu", target, ("-std=c++17", *CUPY_ADDS, *options))
        assert usage
        for kernel, took in usage.items():
            if took.spilled or took.stack or took.serialized:
                faults.append(f"{kernel} with {options}: {took}")
    assert not faults, "\n".join(faults)


def test_a_kernel_that_spills_is_noticed():
    code = """
    extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* x, float* y, int n) {
        float v[64];
        #pragma unroll
        for (int i = 0; i < 64; i++) v[i] = x[threadIdx.x * 64 + i];
        for (int k = 0; k < n; k++)
            #pragma unroll
            for (int i = 0; i < 64; i++) v[i] = v[i] * v[(i + 7) % 64] + x[k];
        #pragma unroll
        for (int i = 0; i < 64; i++) y[threadIdx.x * 64 + i] = v[i];
    }
    extern "C" __global__ void stacks(const int* x, int* y) {
        int v[50];
        for (int i = 0; i < 50; i++) v[x[i]] = i;
        y[0] = v[x[50]];
    }"""
    usage = nvrtc.compile_kernels(code, "spills.cu", 80, ("-std=c++17",))
    assert usage["spills"].spilled and usage["stacks"].stack


def test_products_of_warp_groups_that_wait_for_each_other_are_noticed():
    code = loader.source("attention_wgmma.cu")
    for wait in ("products_wait(1);  // the scores", "products_wait(0);  // the outputs"):
        assert wait in code
        code = code.replace(wait, "//")
    assert nvrtc.compile_kernels(code, "attention_wgmma.cu", "90a", ("-std=c++17",))["attention_wgmma"].serialized


def test_attention_by_warp_groups_is_refused_where_its_instructions_are_missing():
    with pytest.raises(nvrtc.CompileError, match="wgmma"):
        nvrtc.compile_kernels(loader.source("attention_wgmma.cu"), "attention_wgmma.cu", 90, ("-std=c++17",))


def test_a_kernel_that_is_wrong_is_refused():
    with pytest.raises(nvrtc.CompileError, match="undefined"):
        nvrtc.compile_kernels('extern "C" __global__ void wrong() { nothing(); }', "wrong.cu", 80)

"""The loader of CUDA kernels: errors when something is missing, and that kernels are compiled once."""

from __future__ import annotations

import re
import sys
import types

import fake_cupy
import numpy as np
import pytest
from vitnp.kernels.cuda import loader

from vitnp.errors import DeviceError


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


class CompileException(Exception):
    pass


@pytest.fixture
def surroundings(monkeypatch):
    """Gives the loader another machine: a driver, and a CuPy that behaves as it's told."""

    def become(driver: int | None, cupy: types.SimpleNamespace | None = None) -> None:
        monkeypatch.setattr(loader, "driver_version", lambda: driver)
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # None: the import fails
        for memoised in (loader.find_trouble, loader._compiled, loader._module, loader.shared_memory):
            memoised.cache_clear()

    yield become
    for memoised in (loader.find_trouble, loader._compiled, loader._module, loader.shared_memory):
        memoised.cache_clear()


def cupy(count=1, failure: Exception | None = None) -> types.SimpleNamespace:
    """A CuPy for CUDA 13 with so many GPUs, or an exception when asked for them, and another when it compiles."""
    compiled = []

    def ask() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    def module(**_):
        return types.SimpleNamespace(get_function=compile_one)

    def compile_one(name: str):
        if failure:
            raise failure
        compiled.append(types.SimpleNamespace(name=name, shared_size_bytes=1000))
        return compiled[-1]

    runtime = types.SimpleNamespace(
        getDeviceCount=ask, CUDARuntimeError=CUDARuntimeError, runtimeGetVersion=lambda: 13000
    )
    cuda = types.SimpleNamespace(
        runtime=runtime,
        compiler=types.SimpleNamespace(CompileException=CompileException),
        Device=lambda *_: types.SimpleNamespace(
            id=0, compute_capability="75", attributes={"MaxSharedMemoryPerBlockOptin": 65536}
        ),
    )
    return types.SimpleNamespace(cuda=cuda, RawModule=module, compiled=compiled)


@pytest.mark.parametrize(
    "driver, module, words",
    [
        (None, None, "no NVIDIA driver, and so no GPU, .* CuPy isn't installed either; choose --device cpu"),
        (12040, None, r"CuPy isn't installed; run: pip install 'vitnp\[cuda12\]'"),
        (13020, None, r"CuPy isn't installed; run: pip install 'vitnp\[cuda13\]'"),
        (None, cupy(CUDARuntimeError(35, "insufficient")), "no NVIDIA driver, and so no GPU"),
        (
            12040,
            cupy(CUDARuntimeError(35, "insufficient")),
            r"knows CUDA 12.4, too old .* CUDA 13; run: pip install 'vitnp\[cuda12\]'",
        ),
        (11040, cupy(CUDARuntimeError(35, "insufficient")), "knows CUDA 11.4, too old .* CUDA 13; update the driver"),
        (
            13000,
            cupy(CUDARuntimeError(100, "no device")),
            "no NVIDIA GPU on this machine, or CUDA_VISIBLE_DEVICES hides it",
        ),
        (
            13000,
            cupy(CUDARuntimeError(999, "cudaErrorUnknown: oh dear")),
            r"can't be used \(cudaErrorUnknown: oh dear\)",
        ),
        (13000, cupy(0), "no NVIDIA GPU"),
    ],
)
def test_a_gpu_that_cannot_be_used(surroundings, driver, module, words):
    surroundings(driver, module)
    with pytest.raises(DeviceError, match=words) as raised:
        loader.kernel("gelu", "epilogue")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "failure, words",
    [
        (
            CompileException(
                'gelu.cu(8): catastrophic error: cannot open source file "cuda_fp16.h"\n#include <cuda_fp16.h>'
            ),
            r"header cuda_fp16.h is missing, which CuPy needs .* pip install 'vitnp\[cuda13\]'",
        ),
        (
            RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: no such file"),
            r"NVRTC can't be loaded .*'vitnp\[cuda13\]'",
        ),
        (
            CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
            "NVRTC knows no GPU of compute capability 75",
        ),
        (
            RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: too new"),
            "driver can't run what NVRTC compiles .* update the driver",
        ),
        (
            CompileException("====\n\nsomething else."),
            r"gelu.cu can't be compiled for compute capability 75 \(something else\)",
        ),
    ],
)
def test_a_kernel_that_cannot_be_compiled(surroundings, failure, words):
    surroundings(13000, cupy(failure=failure))
    with pytest.raises(DeviceError, match=words) as raised:
        loader.kernel("gelu", "epilogue")
    assert "\n" not in str(raised.value)


def test_a_broken_cupy_says_what_broke_it(surroundings, monkeypatch, tmp_path):
    (tmp_path / "cupy.py").write_text(
        'raise ImportError("""\n====\nFailed.\n\nOriginal error:\n  ImportError: libcublas.so.13\n====""")\n'
    )
    surroundings(13000)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.syspath_prepend(tmp_path)
    assert re.search(r"can't be imported \(ImportError: libcublas.so.13\); run: pip install", loader.find_trouble())


def test_a_missing_library_of_products_is_found_out_before_any(surroundings):
    class Cuda(types.SimpleNamespace):
        @property
        def cublas(self):
            raise ImportError('Failure finding "libcublasLt.so.13": No such file\n')

    there = cupy()
    there.cuda = Cuda(**vars(there.cuda))
    surroundings(13000, there)
    words = r"cuBLAS can't be loaded \(Failure .*\); run: pip install 'vitnp\[cuda13\]'"
    assert re.search(words, loader.find_trouble())


def test_kernels_are_compiled_once_for_each_set_of_options(surroundings):
    there = cupy()
    surroundings(13000, there)
    first = loader.kernel("gelu", "epilogue")
    assert loader.kernel("gelu", "epilogue") is first
    assert loader.kernel("gelu", "epilogue", "-DHALF") is not first
    # Asked for once, for any number of bytes: a lower limit would hold for launches that came before as well.
    larger = loader.kernel("gelu", "epilogue", shared=50_000)
    assert loader.kernel("gelu", "epilogue", shared=100) is larger is not first
    assert [getattr(found, "max_dynamic_shared_size_bytes", None) for found in there.compiled] == [None, None, 64536]
    loader.kernel("attention", "attention_half", carveout=100)
    assert [getattr(found, "preferred_shared_memory_carveout", None) for found in there.compiled] == [None] * 3 + [100]


def test_nothing_reaches_a_kernel_as_a_null_pointer():
    given = []
    kernel = loader.Kernel(lambda grid, block, arguments, shared_mem: given.extend(arguments))
    kernel((1,), (32,), (np.float32(2), None))
    assert given[0] == 2 and type(given[1]) is np.intp and given[1] == 0


def test_a_source_is_whole_and_keeps_its_lines():
    whole = loader.source("kmeans.cu")
    assert '#include "' not in whole
    for file in ("kmeans.cu", "tiles.cuh", "tensor_core.cuh"):
        assert f'#line 1 "{file}"' in whole


def test_operations_can_be_named_without_cupy(surroundings):
    surroundings(None)
    with fake_cupy.installed():
        from vitnp.kernels.cuda import dispatch

        assert dispatch.kmeans_step.__doc__.startswith("Run one Lloyd iteration")

"""Compile the .cu files of ``src/`` for the current GPU, once per process; CuPy caches the machine code on disk.

Problems of the installation (no driver, no CuPy, no CUDA headers) are detected here, and reported in one sentence with
the command that solves them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import re
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import cubin

from vitnp.errors import DeviceError

if TYPE_CHECKING:
    import cupy

# Status codes of the CUDA runtime: cudaErrorInsufficientDriver and cudaErrorNoDevice.
_OLD_DRIVER, _NO_DEVICE = 35, 100
# Kernels read and write 16 bytes at a time.
_ALIGNMENT = 16


class Kernel:
    """A compiled kernel; calling it launches it on the current stream, without waiting for it.

    Parameters
    ----------
    function : cupy.RawKernel
    """

    def __init__(self, function: cupy.RawKernel):
        self._function = function

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[object, ...], *, shared_mem: int = 0
    ) -> None:
        """Launch the kernel.

        Parameters
        ----------
        grid, block : tuple of int
        arguments : tuple
            CuPy arrays, NumPy scalars of exactly the parameters' types, and None for a null pointer.
        shared_mem : int
            Bytes of dynamic shared memory.
        """
        # CuPy does not convert None to a null pointer: it passes the pointer -1.
        converted = tuple(np.intp(0) if argument is None else argument for argument in arguments)
        self._function(grid, block, converted, shared_mem=shared_mem)


def kernel(
    file: str, name: str, *options: str, shared: int = 0, carveout: int | None = None, target: str | None = None
) -> Kernel:
    """Return a kernel, compiled for the current device.

    Parameters
    ----------
    file : str
        Name of a .cu file in ``src/``, without the extension.
    name : str
        Name of the kernel in this file.
    *options : str
        Compiler options: ``-DNAME=VALUE``.
    shared : int
        Bytes of dynamic shared memory that launches will request.
    carveout : int or None
        Percentage of a multiprocessor's L1 cache to use as shared memory. None leaves it to the driver, which may
        choose too little for as many blocks as the registers allow.
    target : str or None
        What to compile for, such as "sm_90a", if it is not simply the device's compute capability.

    Returns
    -------
    Kernel
        Call it as ``kernel(grid, block, arguments, shared_mem=...)``.

    Raises
    ------
    DeviceError
        If CuPy, a GPU, or CUDA's compiler is missing.
    """
    cupy = require_cupy()
    return _compiled(cupy.cuda.Device().id, file, name, options, shared > 0, carveout, target)


@functools.cache
def _compiled(
    device: int,
    file: str,
    name: str,
    options: tuple[str, ...],
    dynamic: bool,
    carveout: int | None,
    target: str | None,
) -> Kernel:
    cupy = require_cupy()
    try:
        function = _module(device, file, options, target).get_function(name)
        if dynamic:
            # Allow as much as there is: the limit is a property of the function, which launches of several sizes share.
            # Without a limit a kernel has 48 KB, including its static arrays.
            function.max_dynamic_shared_size_bytes = shared_memory(device) - function.shared_size_bytes
        if carveout is not None:
            function.preferred_shared_memory_carveout = carveout
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError) as error:
        raise DeviceError(_explain_compiler_error(cupy, file, error)) from error
    return Kernel(function)


@functools.cache
def shared_memory(device: int) -> int:
    """Return the bytes of shared memory that a block may have on a device."""
    return require_cupy().cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


def contiguous(x: cupy.ndarray, dtype: np.dtype | type | None = None) -> cupy.ndarray:
    """Return the array unchanged if it is contiguous and aligned to 16 bytes, else a copy that is."""
    cupy = require_cupy()
    x = cupy.ascontiguousarray(x, dtype=dtype)
    return x.copy() if x.data.ptr % _ALIGNMENT else x


@functools.cache
def _module(device: int, file: str, options: tuple[str, ...], target: str | None) -> cupy.RawModule:
    code, options = source(f"{file}.cu"), ("-std=c++17", *options)
    if target is not None:
        return cubin.module(code, f"{file}.cu", target, options)
    return require_cupy().RawModule(code=code, options=options)


@functools.cache
def source(file: str) -> str:
    """Return the text of a .cu file with its .cuh files inserted.

    CuPy identifies cached machine code by the source text, so this text has to be complete.

    Examples
    --------
    >>> "extern" in source("gelu.cu")
    True
    """
    folder = importlib.resources.files(__package__) / "src"
    lines = (folder / file).read_text(encoding="utf-8").splitlines()
    complete = [f'#line 1 "{file}"']
    for number, line in enumerate(lines, start=1):
        included = re.match(r'#include "(\w+\.cuh)"', line)
        complete += [source(included[1]), f'#line {number + 1} "{file}"'] if included else [line]
    return "\n".join(complete) + "\n"


def require_cupy() -> ModuleType:
    """Import CuPy, and check that it finds a GPU.

    Raises
    ------
    DeviceError
        If it cannot be used; the message says in one sentence what is missing and what to do.
    """
    problem = find_trouble()
    if problem:
        raise DeviceError(problem)
    import cupy

    return cupy


@functools.cache
def find_trouble() -> str | None:
    """Return one sentence that says why this process cannot use a GPU and what to do; None if it can."""
    try:
        import cupy
    except ImportError as error:
        missing = getattr(error, "name", None) == "cupy"
        if driver_version() is None:
            also = ", and CuPy isn't installed either" if missing else ""
            return f"there is no NVIDIA driver, and so no GPU, on this machine{also}; choose --device cpu"
        return (
            f"CuPy isn't installed; {_install()}"
            if missing
            else f"CuPy can't be imported ({_gist(error)}); {_install()}"
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return _explain_runtime_error(cupy, error)
    if not count:
        return "there is no NVIDIA GPU on this machine; choose --device cpu"
    try:
        getattr(cupy.cuda, "cublas", None)  # CuPy 14 loads the library on this access
    except (ImportError, OSError) as error:
        return f"CUDA's library cuBLAS can't be loaded ({_gist(error)}); {_install()}"
    return None


def driver_version() -> int | None:
    """Return the newest CUDA version that the installed driver supports, 12040 for 12.4; None without a driver.

    It calls the driver itself, so it does not need CuPy.
    """
    try:
        version = ctypes.c_int()
        return version.value if driver().cuDriverGetVersion(ctypes.byref(version)) == 0 else None
    except (OSError, AttributeError):
        return None


def driver() -> ctypes.CDLL:
    """Return the NVIDIA driver's library.

    Raises
    ------
    OSError
        If there is none.
    """
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def _install() -> str:
    """Return the command that installs CuPy and CUDA's headers for the installed driver."""
    extra = "cuda13" if (driver_version() or 0) >= 13000 else "cuda12"
    return f"run: pip install 'vitnp[{extra}]'"


def _explain_runtime_error(cupy: ModuleType, error: Exception) -> str:
    """Explain an error of the CUDA runtime in one sentence."""
    status, driver = getattr(error, "status", None), driver_version()
    if status == _OLD_DRIVER and driver:
        built = cupy.cuda.runtime.runtimeGetVersion() // 1000
        remedy = _install() if built > driver // 1000 >= 12 else "update the driver"
        knows = f"{driver // 1000}.{driver % 1000 // 10}"
        return f"the NVIDIA driver knows CUDA {knows}, too old for a CuPy made for CUDA {built}; {remedy}"
    if status == _OLD_DRIVER:
        return "there is no NVIDIA driver, and so no GPU, on this machine; choose --device cpu"
    if status == _NO_DEVICE:
        return "there is no NVIDIA GPU on this machine, or CUDA_VISIBLE_DEVICES hides it; choose --device cpu"
    return f"the GPU can't be used ({_gist(error)}); choose --device cpu"


def _explain_compiler_error(cupy: ModuleType, file: str, error: Exception) -> str:
    """Explain an error of the compiler NVRTC in one sentence; `file` is what it was compiling."""
    text = str(error)
    missing = re.search(r'(?:could not|cannot) open source file "([^"]+)"', text)
    if missing:
        return f"CUDA's header {missing[1]} is missing, which CuPy needs to compile kernels; {_install()}"
    if re.search(r"nvrtc", text, re.IGNORECASE) and isinstance(error, (OSError, RuntimeError)) and "load" in text:
        return f"CUDA's compiler NVRTC can't be loaded ({_gist(error)}); {_install()}"
    capability = cupy.cuda.Device().compute_capability
    if "architecture" in text:
        return f"the installed NVRTC knows no GPU of compute capability {capability}; {_install()}"
    if "no kernel image" in text or "UNSUPPORTED_PTX" in text:
        return f"the NVIDIA driver can't run what NVRTC compiles for compute capability {capability}; update the driver"
    return f"{file}.cu can't be compiled for compute capability {capability} ({_gist(error)}); {_install()}"


def _gist(error: Exception) -> str:
    """Return the informative line of a message: the one after "Original error:", or the first with letters."""
    lines = [
        line.strip() for line in str(error).partition("Original error:")[2].splitlines() or str(error).splitlines()
    ]
    return next((line for line in lines if any(map(str.isalpha, line))), type(error).__name__).rstrip(".")

"""Compiles the .cu files of this folder for the GPU at hand, each once a process; CuPy keeps the machine code on disk.

What can be wrong with a GPU's surroundings is found out here, and said in one sentence with the command that mends it.
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

from vitnp.errors import DeviceError

if TYPE_CHECKING:
    import cupy

# Statuses of the CUDA runtime that mean something to a user.
_OLD_DRIVER, _NO_DEVICE = 35, 100
# Kernels read and write 16 bytes at a time.
_PIECE = 16


class Kernel:
    """A compiled kernel; call it to launch it on the current stream, which nobody waits for.

    Parameters
    ----------
    function : cupy.RawKernel
    """

    def __init__(self, function: cupy.RawKernel):
        self._function = function

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[object, ...], *, shared_mem: int = 0
    ) -> None:
        """Launch.

        Parameters
        ----------
        grid, block : tuple of int
        arguments : tuple
            Arrays of CuPy, NumPy scalars of exactly the parameters' types, and None for a null pointer.
        shared_mem : int
            Bytes of dynamic shared memory.
        """
        # CuPy itself makes of None whatever the driver finds at address 0, in practice the pointer -1.
        known = tuple(np.intp(0) if argument is None else argument for argument in arguments)
        self._function(grid, block, known, shared_mem=shared_mem)


def kernel(file: str, name: str, *options: str, shared: int = 0, carveout: int | None = None) -> Kernel:
    """A kernel, compiled for the current device.

    Parameters
    ----------
    file : str
        Name of a .cu file of this folder, without its ending.
    name : str
        Of the kernel in it.
    *options : str
        For the compiler: ``-DNAME=VALUE``.
    shared : int
        Bytes of dynamic shared memory that launches will ask for.
    carveout : int or None
        Percent of a multiprocessor's first-level cache that is wanted as shared memory; None leaves it to the driver, which
        may leave too little for the blocks that registers have room for.

    Returns
    -------
    Kernel
        Call it as ``kernel(grid, block, arguments, shared_mem=...)``.

    Raises
    ------
    DeviceError
        Without CuPy, a GPU or what CuPy compiles with.
    """
    cupy = require_cupy()
    return _compiled(cupy.cuda.Device().id, file, name, options, shared > 0, carveout)


@functools.cache
def _compiled(
    device: int, file: str, name: str, options: tuple[str, ...], dynamic: bool, carveout: int | None
) -> Kernel:
    cupy = require_cupy()
    try:
        function = _module(device, file, options).get_function(name)
        if dynamic:
            # All there is, once and for all: the limit belongs to the machine code, which launches of several sizes
            # share. Without one a kernel has 48 KB, its static arrays included.
            function.max_dynamic_shared_size_bytes = shared_memory(device) - function.shared_size_bytes
        if carveout is not None:
            function.preferred_shared_memory_carveout = carveout
    except (cupy.cuda.compiler.CompileException, RuntimeError, OSError) as error:
        raise DeviceError(_compiler_trouble(cupy, file, error)) from error
    return Kernel(function)


@functools.cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory that a block may have on this device."""
    return require_cupy().cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


def contiguous(x: cupy.ndarray, dtype: np.dtype | type | None = None) -> cupy.ndarray:
    """The array itself if a kernel can read it from the front, 16 bytes at a time, else a copy that it can."""
    cupy = require_cupy()
    x = cupy.ascontiguousarray(x, dtype=dtype)
    return x.copy() if x.data.ptr % _PIECE else x


@functools.cache
def _module(device: int, file: str, options: tuple[str, ...]) -> object:
    return require_cupy().RawModule(code=source(f"{file}.cu"), options=("-std=c++17", *options))


@functools.cache
def source(file: str) -> str:
    """Text of a .cu file with the .cuh files it includes in their places.

    CuPy recognizes machine code that it has kept by the text it was made from, so the text has to be whole.

    Examples
    --------
    >>> "extern" in source("gelu.cu")
    True
    """
    lines = importlib.resources.files(__package__).joinpath("src", file).read_text(encoding="utf-8").splitlines()
    whole = [f'#line 1 "{file}"']
    for number, line in enumerate(lines, start=1):
        included = re.match(r'#include "(\w+\.cuh)"', line)
        whole += [source(included[1]), f'#line {number + 1} "{file}"'] if included else [line]
    return "\n".join(whole) + "\n"


def require_cupy() -> ModuleType:
    """CuPy, once it's certain that it can be imported and sees a GPU.

    Raises
    ------
    DeviceError
        In one sentence what is missing, and what mends it.
    """
    trouble = find_trouble()
    if trouble:
        raise DeviceError(trouble)
    import cupy

    return cupy


@functools.cache
def find_trouble() -> str | None:
    """Why this process can't use a GPU, in one sentence with the remedy; None if it can."""
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
        return _runtime_trouble(cupy, error)
    if not count:
        return "there is no NVIDIA GPU on this machine; choose --device cpu"
    try:
        getattr(cupy.cuda, "cublas", None)  # CuPy 14 looks for the library when somebody asks for this
    except (ImportError, OSError) as error:
        return f"CUDA's library cuBLAS can't be loaded ({_gist(error)}); {_install()}"
    return None


def driver_version() -> int | None:
    """The newest CUDA that the installed driver knows, 12040 for 12.4; None without a driver.

    It asks the driver itself, so it needs no CuPy.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        version = ctypes.c_int()
        return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None
    except (OSError, AttributeError):
        return None


def _install() -> str:
    """The command that brings CuPy and CUDA's headers for the driver at hand."""
    extra = "cuda13" if (driver_version() or 0) >= 13000 else "cuda12"
    return f"run: pip install 'vitnp[{extra}]'"


def _runtime_trouble(cupy: ModuleType, error: Exception) -> str:
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


def _compiler_trouble(cupy: ModuleType, file: str, error: Exception) -> str:
    """NVRTC's words in ours. `file` is what it was compiling."""
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
    """The line of a message that says what happened: the one behind "Original error:", or the first with words."""
    lines = [
        line.strip() for line in str(error).partition("Original error:")[2].splitlines() or str(error).splitlines()
    ]
    return next((line for line in lines if any(map(str.isalpha, line))), type(error).__name__).rstrip(".")

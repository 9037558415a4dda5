"""NVIDIA's run-time compiler, which CuPy uses, through ctypes: it needs neither a GPU nor a driver, only its wheel.

``pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12`` brings the compiler and its headers (``cuda_fp16.h``).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.util
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a kernel takes: registers a thread, bytes of static shared memory, of stack, of spilled registers.

    `serialized`: products of warp groups wait for each other, because their registers are used in between.
    """

    registers: int
    shared: int
    stack: int
    spilled: int
    serialized: bool


class CompileError(RuntimeError):
    """NVRTC refuses a file; the message is its log."""


@functools.cache
def find() -> tuple[pathlib.Path, pathlib.Path] | None:
    """The library and the folder of headers among the installed wheels, or None."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except ImportError:
        spec = None
    roots = [pathlib.Path(root) for root in spec.submodule_search_locations or ()] if spec else []
    libraries = [path for root in roots for path in root.glob("*/lib/libnvrtc.so.*") if "alt" not in path.name]
    headers = [path.parent for root in roots for path in root.glob("*/include/cuda_fp16.h")]
    return (libraries[0], headers[0]) if libraries and headers else None


@functools.cache
def _library() -> ctypes.CDLL:
    path, _ = find()
    for builtins in path.parent.glob("libnvrtc-builtins.so*"):
        if "alt" not in builtins.name:
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def version() -> tuple[int, int]:
    """Of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def compile_kernels(code: str, name: str, arch: int | str, options: tuple[str, ...] = ()) -> dict[str, Usage]:
    """Compile to machine code, and say what each kernel takes.

    Parameters
    ----------
    code : str
        Text of a .cu file.
    name : str
        What messages call it.
    arch : int or str
        Compute capability: 75, 80, 90, "90a".
    options : tuple of str

    Raises
    ------
    CompileError
    """
    library, program = _library(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), name.encode(), 0, None, None)
    try:
        given = [f"-arch=sm_{arch}", f"-I{find()[1]}", "--ptxas-options=-v", *options]
        status = library.nvrtcCompileProgram(
            program, len(given), (ctypes.c_char_p * len(given))(*[o.encode() for o in given])
        )
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise CompileError(f"{name} for sm_{arch} with {options}:\n{log.value.decode()}")
    return _usage(log.value.decode())


def _usage(log: str) -> dict[str, Usage]:
    """The figures in ptxas's report."""
    found: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            current = found.setdefault(match[1], {"registers": 0, "shared": 0, "stack": 0, "spilled": 0})
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            current.update(stack=int(match[1]), spilled=int(match[2]) + int(match[3]))
        if match := re.search(r"Used (\d+) registers", line):
            current["registers"] = int(match[1])
        if match := re.search(r"(\d+) bytes smem", line):
            current["shared"] = int(match[1])
    serialized = set(re.findall(r"wgmma.*serialized.*in the function '(\S+)'", log))
    return {kernel: Usage(**figures, serialized=kernel in serialized) for kernel, figures in found.items()}

"""Load machine code of kernels into the process, and make functions of it that Python calls."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence

import llvmlite.binding as llvm
from vitnp.kernels.cpu.codegen import entry
from vitnp.kernels.cpu.codegen.target import machine

_METH_FASTCALL = 0x80


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Machine code of a kernel.

    Attributes
    ----------
    code : bytes
        An object file.
    result : str
        Name of numba's type of the result.
    kernels : tuple of str
        Symbols of shared kernels that the code calls.
    externals : tuple of str
        Other symbols that it needs.
    """

    code: bytes
    result: str
    kernels: tuple[str, ...]
    externals: tuple[str, ...]


class _Method(ctypes.Structure):
    """Python's description of a function of an extension module."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("entry", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


# Python keeps pointers to them.
_methods: list[_Method] = []


@functools.cache
def _engine() -> llvm.ExecutionEngine:
    """Return LLVM's engine, which places machine code in memory."""
    entry.check_layout()
    entry.register_symbols()
    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine())


def has_symbols(names: Sequence[str]) -> bool:
    """Return whether all symbols that machine code needs are in this process."""
    _engine()
    return all(llvm.address_of_symbol(name) is not None for name in names)


def load(symbol: str, code: bytes) -> tuple[Callable, int]:
    """Load an object file that :func:`vitnp.kernels.cpu.codegen.compiler.compile_kernel` made.

    Returns
    -------
    function : callable
    address : int
        That of the function for other kernels, see :attr:`vitnp.kernels.cpu.codegen.jit.Kernel.address`.
    """
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol + entry.SHARED)
    llvm.add_symbol(symbol + entry.SHARED, address)
    method = _Method(symbol.encode(), engine.get_function_address(symbol), _METH_FASTCALL, None)
    _methods.append(method)
    create = ctypes.pythonapi.PyCFunction_NewEx
    create.restype, create.argtypes = ctypes.py_object, [ctypes.POINTER(_Method), ctypes.c_void_p, ctypes.c_void_p]
    return create(method, None, None), address

"""The functions of a kernel's object code that others call: Python, and other kernels.

Python calls a kernel as it calls functions of extension modules (METH_FASTCALL), with pointers to its objects. The
entry reads numbers and the fields of NumPy's arrays, which are part of NumPy's binary interface, gives other threads
the interpreter while the kernel runs, and returns a number or None.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from vitnp.kernels.cpu.codegen.types import Array, Type

SHARED = "_shared"

_INT, _LONG = ir.IntType(32), ir.IntType(64)
_POINTER = ir.IntType(8).as_pointer()

# Fields of NumPy's arrays and dtypes, in bytes behind the head of an object.
HEAD = object.__basicsize__
_TYPE = HEAD - ctypes.sizeof(ctypes.c_void_p)
_DATA, _NDIM, _SHAPE, _STRIDES, _DTYPE, _FLAGS = (HEAD + offset for offset in (0, 8, 16, 24, 40, 48))
_BYTEORDER, _NUMBER = HEAD + 10, HEAD + 12
_SWAPPED = ord(">" if np.little_endian else "<")
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400

# Functions and objects of Python. Symbols that the interpreter exports are not found on all systems by themselves.
_FUNCTIONS = {
    "PyType_IsSubtype": (_INT, _POINTER, _POINTER),
    "PyErr_SetString": (ir.VoidType(), _POINTER, _POINTER),
    "PyErr_Occurred": (_POINTER,),
    "PyLong_AsLongLong": (_LONG, _POINTER),
    "PyFloat_AsDouble": (ir.DoubleType(), _POINTER),
    "PyObject_IsTrue": (_INT, _POINTER),
    "PyLong_FromLongLong": (_POINTER, _LONG),
    "PyLong_FromUnsignedLongLong": (_POINTER, _LONG),
    "PyFloat_FromDouble": (_POINTER, ir.DoubleType()),
    "PyBool_FromLong": (_POINTER, _LONG),
    "PyEval_SaveThread": (_POINTER,),
    "PyEval_RestoreThread": (ir.VoidType(), _POINTER),
    "Py_IncRef": (ir.VoidType(), _POINTER),
}
_OBJECTS = {"array": np.ndarray, "none": None, "type_error": TypeError, "runtime_error": RuntimeError}


def register_symbols() -> None:
    """Tell LLVM where Python's functions and objects are."""
    for name in _FUNCTIONS:
        address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"vitnp_{name}", address)
    for name, value in _OBJECTS.items():
        llvmlite.binding.add_symbol(f"vitnp_{name}", id(value))


def check_layout() -> None:
    """Check that arrays lie in memory as the entries read them.

    Raises
    ------
    ImportError
        If they do not.
    """
    array = np.zeros((2, 3), np.float32)[:, ::2]
    address = id(array)

    def read(kind: type, at: int) -> int:
        return kind.from_address(at).value  # type: ignore[attr-defined]

    word = ctypes.c_ssize_t
    shape, strides, dtype = (read(word, address + at) for at in (_SHAPE, _STRIDES, _DTYPE))
    found = (
        read(word, address + _TYPE), read(word, address + _DATA), read(ctypes.c_int, address + _NDIM),
        read(word, shape), read(word, strides + 8), dtype, read(ctypes.c_int, address + _FLAGS),
        read(ctypes.c_int, dtype + _NUMBER),
    )  # fmt: skip
    expected = (
        id(np.ndarray), array.__array_interface__["data"][0], 2, 2, 8, id(array.dtype), array.flags.num,
        array.dtype.num,
    )  # fmt: skip
    if ctypes.sizeof(word) != 8 or found != expected:
        raise ImportError("compiled kernels do not support this version of Python or NumPy")


class _Python:
    """Calls of Python's functions, appended to a function."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def call(self, name: str, *arguments: ir.Value) -> ir.Value:
        result, *types = _FUNCTIONS[name]
        return self.builder.call(_declared(self.builder.module, f"vitnp_{name}", result, types), arguments)

    def object(self, name: str) -> ir.Value:
        module, name = self.builder.module, f"vitnp_{name}"
        known = module.globals.get(name)
        variable = ir.GlobalVariable(module, ir.IntType(8), name) if known is None else known
        return self.builder.bitcast(variable, _POINTER)

    def field(self, pointer: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
        """Load a field of an object."""
        b = self.builder
        return b.load(b.bitcast(b.gep(pointer, [_LONG(offset)]), kind.as_pointer()))

    def raise_error(self, kind: str, message: str) -> None:
        """Return from the entry with an error."""
        b, data = self.builder, bytearray(message.encode() + b"\0")
        text = ir.Constant(ir.ArrayType(ir.IntType(8), len(data)), data)
        variable = ir.GlobalVariable(b.module, text.type, b.module.get_unique_name("message"))
        variable.initializer, variable.linkage, variable.global_constant = text, "internal", True
        self.call("PyErr_SetString", self.object(kind), b.bitcast(variable, _POINTER))
        b.ret(ir.Constant(_POINTER, None))


def _declared(module: ir.Module, name: str, result: ir.Type, types: Sequence[ir.Type]) -> ir.Function:
    known = module.globals.get(name)
    return ir.Function(module, ir.FunctionType(result, types), name) if known is None else known


def _add_check(module: ir.Module) -> ir.Function:
    """Append ``check(array, ndim, number, alias, flags)``: whether an object is an array of a type."""
    bit = ir.IntType(1)
    function = ir.Function(module, ir.FunctionType(bit, [_POINTER, _INT, _INT, _INT, _INT]), "check_array")
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block())
    python = _Python(b)
    value, ndim, number, alias, flags = function.args
    is_array = python.call("PyType_IsSubtype", python.field(value, _TYPE, _POINTER), python.object("array"))
    with b.if_then(b.icmp_signed("==", is_array, _INT(0))):
        b.ret(bit(0))
    dtype = python.field(value, _DTYPE, _POINTER)
    found = python.field(dtype, _NUMBER, _INT)
    conditions = (
        b.icmp_signed("==", python.field(value, _NDIM, _INT), ndim),
        b.or_(b.icmp_signed("==", found, number), b.icmp_signed("==", found, alias)),
        b.icmp_signed("!=", python.field(dtype, _BYTEORDER, ir.IntType(8)), ir.IntType(8)(_SWAPPED)),
        b.icmp_signed("==", b.and_(python.field(value, _FLAGS, _INT), flags), flags),
    )
    right = conditions[0]
    for condition in conditions[1:]:
        right = b.and_(right, condition)
    b.ret(right)
    return function


def _dtype_numbers(name: str) -> tuple[int, int]:
    """Return NumPy's number of a dtype, and that of the other integer of the same size, if there is one."""
    dtype = np.dtype(name)
    for other in "lLqQ":
        if np.dtype(other) == dtype and np.dtype(other).num != dtype.num:
            return dtype.num, np.dtype(other).num
    return dtype.num, dtype.num


def add_entry(context: Any, library: Any, symbol: str, types: Sequence[Type], signature: Any, description: Any) -> None:
    """Append the function that Python calls, ``PyObject *symbol(self, arguments, n)``, to a kernel's module.

    Parameters
    ----------
    context, library : numba's target context and the kernel's module
    symbol : str
    types : sequence of Type
        Types of the arguments.
    signature, description
        numba's signature and description of the kernel.
    """
    module = context.create_module(symbol)
    check = _add_check(module)
    function = ir.Function(module, ir.FunctionType(_POINTER, [_POINTER, _POINTER.as_pointer(), _LONG]), symbol)
    b = ir.IRBuilder(function.append_basic_block())
    python = _Python(b)
    right: ir.Value = b.icmp_signed("==", function.args[2], _LONG(len(types)))
    with b.if_then(b.not_(right), likely=False):
        python.raise_error("type_error", f"{description.qualname}() takes {len(types)} arguments")
    objects = [b.load(b.gep(function.args[1], [_LONG(i)])) for i in range(len(types))]
    for value, kind in zip(objects, types):
        if isinstance(kind, Array):
            flags = _ALIGNED | (_CONTIGUOUS if kind.layout == "C" else 0) | (0 if kind.readonly else _WRITEABLE)
            numbers = _dtype_numbers(kind.dtype.name)
            right = b.and_(right, b.call(check, [value, *map(_INT, (kind.ndim, *numbers, flags))]))
    with b.if_then(b.not_(right), likely=False):
        expected = "; ".join(map(str, types))
        python.raise_error("type_error", f"{description.qualname}() was compiled for ({expected})")
    arguments = [_unbox(context, python, *each) for each in zip(objects, types, signature.args)]
    if not all(isinstance(kind, Array) for kind in types):
        failed = b.icmp_unsigned("!=", python.call("PyErr_Occurred"), ir.Constant(_POINTER, None))
        with b.if_then(failed, likely=False):
            b.ret(ir.Constant(_POINTER, None))
    thread = python.call("PyEval_SaveThread")
    callee = context.declare_function(module, description)
    status, result = context.call_conv.call_function(b, callee, signature.return_type, signature.args, arguments)
    python.call("PyEval_RestoreThread", thread)
    with b.if_then(status.is_error, likely=False):
        python.raise_error("runtime_error", f"{description.qualname}() failed")
    b.ret(_box(python, signature.return_type, result))
    library.add_ir_module(module)


def _unbox(context: Any, python: _Python, value: ir.Value, kind: Type, numba_type: Any) -> ir.Value:
    """Return numba's representation of an argument."""
    from numba.np.arrayobj import make_array, populate_array

    b = python.builder
    if isinstance(kind, Array):
        array = make_array(numba_type)(context, b)
        shape, strides = (b.bitcast(python.field(value, at, _POINTER), _LONG.as_pointer()) for at in (_SHAPE, _STRIDES))
        lengths, steps = ([b.load(b.gep(p, [_LONG(i)])) for i in range(kind.ndim)] for p in (shape, strides))
        data = b.bitcast(python.field(value, _DATA, _POINTER), array.data.type)
        populate_array(array, data, lengths, steps, np.dtype(kind.dtype.name).itemsize, meminfo=None)
        return array._getvalue()
    target = context.get_value_type(numba_type)
    if kind.name == "none":
        return context.get_dummy_value()
    if kind.name == "boolean":
        return b.icmp_signed("!=", python.call("PyObject_IsTrue", value), _INT(0))
    if kind.name.startswith("float"):
        number = python.call("PyFloat_AsDouble", value)
        return number if kind.name == "float64" else b.fptrunc(number, target)
    number = python.call("PyLong_AsLongLong", value)
    return number if target == _LONG else b.trunc(number, target)


def _box(python: _Python, numba_type: Any, value: ir.Value) -> ir.Value:
    """Return Python's object for a result."""
    b, name = python.builder, numba_type.name
    if name == "none":
        python.call("Py_IncRef", python.object("none"))
        return python.object("none")
    if name.startswith("float"):
        return python.call("PyFloat_FromDouble", value if name == "float64" else b.fpext(value, ir.DoubleType()))
    if name == "bool":
        return python.call("PyBool_FromLong", b.zext(value, _LONG))
    if name.startswith("uint"):
        wide = value if value.type == _LONG else b.zext(value, _LONG)
        return python.call("PyLong_FromUnsignedLongLong", wide)
    return python.call("PyLong_FromLongLong", value if value.type == _LONG else b.sext(value, _LONG))

"""A cupy of NumPy arrays and emulated kernels: the Python around the kernels runs where there is no GPU.

Arrays are NumPy's, marked as the device's; functions are NumPy's own; kernels run in :mod:`cuda_emulator`, as strictly
as asked for. A kernel takes nothing but arrays of this module and NumPy scalars, as the real one does. Memory from
:func:`empty` holds ones in all bits (NaN, -1), and in mode "check" a kernel that reads it before something has been
written there is at fault.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import types
import weakref

import numpy as np

import cuda_emulator

_CREATING = ("arange", "array", "asarray", "ascontiguousarray", "full", "ones", "zeros")


class ndarray(np.ndarray):
    """A NumPy array that counts as lying on the device."""

    @property
    def data(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def get(self) -> np.ndarray:
        return np.array(self)

    def __setitem__(self, place, value) -> None:
        _unwritten.pop(_owner(self), None)
        super().__setitem__(place, value)


# Of each array from `empty`, by its memory: where views begin that a kernel has written.
_unwritten: dict[int, set[int]] = {}


def _owner(array: np.ndarray) -> int:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return id(array)


def empty(shape, dtype=float) -> ndarray:
    memory = np.empty(shape, dtype)
    memory.view(np.uint8)[...] = 0xFF if memory.ndim else 0
    _unwritten[id(memory)] = set()
    weakref.finalize(memory, _unwritten.pop, id(memory), None)
    return memory.view(ndarray)


class RawModule:
    """As cupy.RawModule, from text."""

    mode = "fast"

    def __init__(self, *, code: str, options: tuple[str, ...] = (), **others):
        self._module = _emulated(code, tuple(options), self.mode)

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._module.get_function(name))


class RawKernel:
    """As cupy.RawKernel."""

    _seeds = itertools.count()

    def __init__(self, kernel):
        self._kernel = kernel

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self._kernel.max_dynamic_shared_size_bytes = size

    def __call__(self, grid, block, args, *, shared_mem: int = 0) -> None:
        names = self._kernel.module.parameters[self._kernel.name]
        fresh, plain = [], []
        for name, kind, argument in zip(names, self._kernel.signature, args):
            if not isinstance(argument, ndarray):
                if isinstance(argument, np.ndarray):
                    raise TypeError(f"{self._kernel.name}: {name} is an array of NumPy, not of the device")
                plain.append(argument)
                continue
            written = _unwritten.get(_owner(argument))
            if written is not None and argument.ctypes.data not in written:
                fresh.append(name)
            plain.append(_span(argument))
        self._kernel(grid, block, plain, shared_mem=shared_mem, seed=next(self._seeds), uninit=tuple(fresh))
        for kind, argument in zip(self._kernel.signature, args):
            if kind[0] == "p" and isinstance(argument, ndarray) and _owner(argument) in _unwritten:
                _unwritten[_owner(argument)].add(argument.ctypes.data)


def _span(array: np.ndarray) -> np.ndarray:
    """The memory from an array's first element to its last: what a kernel may touch that gets its address."""
    if array.flags.c_contiguous:
        return array.view(np.ndarray)
    length = 1 + sum((side - 1) * step for side, step in zip(array.shape, array.strides)) // array.itemsize
    return np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,)).view(np.ndarray)


@functools.cache
def _emulated(code: str, options: tuple[str, ...], mode: str) -> cuda_emulator.RawModule:
    named = re.match(r'#line 1 "(.+)"', code)
    return cuda_emulator.RawModule(code, options=options, mode=mode, name=named[1] if named else "code.cu")


def module(mode: str = "fast") -> types.ModuleType:
    """A module to stand in for cupy.

    Parameters
    ----------
    mode : {"fast", "check"}
        Of the emulator.
    """
    fake = types.ModuleType("cupy")
    for name in _CREATING:
        setattr(fake, name, _on_device(getattr(np, name)))
    fake.__getattr__ = lambda name: getattr(np, name)
    fake.ndarray, fake.empty, fake.asnumpy = ndarray, empty, lambda array: np.array(array)
    fake.empty_like = lambda array: empty(array.shape, array.dtype)
    fake.RawModule = type("RawModule", (RawModule,), {"mode": mode})
    fake.cuda = types.SimpleNamespace(
        Device=lambda *_: types.SimpleNamespace(
            id=0,
            compute_capability="90",
            attributes={"MultiProcessorCount": 3, "MaxSharedMemoryPerBlockOptin": 227 * 1024},
        ),
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: 1, CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {})
        ),
        compiler=types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {})),
    )
    return fake


@contextlib.contextmanager
def installed(mode: str = "fast"):
    """Within this context ``import cupy`` gives such a module, and the kernels' own modules have nothing memoised."""

    def ours() -> dict[str, types.ModuleType]:
        return {
            name: found
            for name, found in sys.modules.items()
            if name == "cupy" or name.startswith("vitnp.kernels.cuda")
        }

    before = ours()
    for name in before:
        del sys.modules[name]
    sys.modules["cupy"] = module(mode)
    try:
        yield sys.modules["cupy"]
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _on_device(function):
    @functools.wraps(function)
    def create(*args, **options) -> ndarray:
        return function(*args, **options).view(ndarray)

    return create

"""A replacement of cupy with NumPy arrays and emulated kernels, to test the Python code around kernels without a GPU.

Arrays are NumPy's, marked as the device's; functions are NumPy's own; kernels run in :mod:`cuda_emulator`, as strictly
as asked for. Kernels, functions and operators take nothing but arrays of this module and scalars, as the real ones do:
only :func:`asarray` and :func:`array` bring an array to the device, and :func:`asnumpy` back. Least of all does a
kernel take None: the real one makes a wild pointer of it. Memory from :func:`empty` holds ones in all bits (NaN, -1),
and in mode "check" a kernel that reads it before something has been written there is at fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import re
import sys
import threading
import types
import unittest.mock
import weakref

import cuda_emulator
import fake_cublaslt
import fake_hopper
import fake_streams
import numpy as np

TF32 = 7  # CuPy's number for it
R_32F, R_16F, R_16BF = 0, 2, 14  # CUDA's numbers for types
COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_FAST_TF32 = 68, 69, 77  # cuBLAS's for arithmetic
compute_types: dict[type, int] = {}  # of products, as CuPy keeps them: one setting for all
_OF_STREAMS = ("Stream", "Event", "MemoryPool", "get_current_stream", "get_elapsed_time", "using_allocator")
_CREATING = ("arange", "array", "asarray", "full", "ones", "zeros")


class ndarray(np.ndarray):
    """A NumPy array that counts as an array on the device."""

    __module__ = "cupy"

    @property
    def data(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(ptr=self.ctypes.data)

    def get(self) -> np.ndarray:
        return _to_host(self)

    def __getitem__(self, place) -> ndarray:
        _plain(place)
        return _by_numpy(np.ndarray.__getitem__, (self, place), {})

    def __setitem__(self, place, value) -> None:
        _plain((place, value))
        _unwritten.pop(_owner(self), None)
        _by_numpy(np.ndarray.__setitem__, (self, place, value), {})

    def __array_ufunc__(self, function, method, *inputs, out=(), **options):
        for array in out:
            _unwritten.pop(_owner(array), None)
        found = _by_numpy(getattr(function, method), inputs, {**options, "out": out} if out else options)
        return out[0] if out else found

    def astype(self, dtype, **options) -> ndarray:
        return _by_numpy(np.ndarray.astype, (self, dtype), options)

    def copy(self) -> ndarray:
        return _by_numpy(np.ndarray.copy, (self,), {})

    def reshape(self, *shape) -> ndarray:
        return _by_numpy(np.ndarray.reshape, (self, *shape), {})

    def __bool__(self) -> bool:
        return bool(_to_host(self))

    def __int__(self) -> int:
        return int(_to_host(self))

    def __float__(self) -> float:
        return float(_to_host(self))

    def item(self, *place):
        return _to_host(self).item(*place)

    def __array_function__(self, function, types, args, options):
        return _by_numpy(function, args, options)


def _plain(value):
    """Convert arrays of the device to plain NumPy arrays; refuse arrays that are not on the device."""
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("an array of NumPy meets one of the device; cupy.asarray brings it there")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return value


def _to_host(array: ndarray) -> np.ndarray:
    fake_streams.refuse("a transfer to the host")
    fake_streams.counts["download"] += 1
    fake_streams.use([array], [])
    fake_streams.get_current_stream().synchronize()
    return np.array(array.view(np.ndarray) if isinstance(array, np.ndarray) else array)


def _by_numpy(function, args, options):
    """Wrap a function of NumPy for arrays of the device; a capture notes what it does instead of a view."""
    args, options = _plain(list(args)), {name: _plain(value) for name, value in options.items()}
    noted = fake_streams.capture()
    with np.errstate(all="ignore") if noted is not None else contextlib.nullcontext():
        found = _compute(function, args, options)
    if isinstance(found, np.generic):  # stays on the device until it is read
        found = np.array(found)
    written = options.get("out", args[0] if function is np.ndarray.__setitem__ else None)
    fresh = isinstance(found, np.ndarray) and not any(map(functools.partial(_shares, found), _arrays((args, options))))
    if fresh or written is not None:
        fake_streams.counts["elementwise"] += 1
        fake_streams.use(_arrays((args, options)), [found] if fresh else list(_arrays(written)))
        if fresh:
            fake_streams.keep(found)
        if noted is not None:
            noted.append(functools.partial(_again, function, *map(fake_streams.packed, (args, options)),
                                           fake_streams.packed(found) if fresh else None))  # fmt: skip
    return found.view(ndarray) if isinstance(found, np.ndarray) else found


def _again(function, args, options, found) -> None:
    args, options = map(fake_streams.unpacked, (args, options))
    written = [options.get("out", args[0]) if found is None else fake_streams.unpacked(found)]
    fake_streams.use(_arrays((args, options)), list(_arrays(written)))
    result = _compute(function, args, options)
    if found is not None:
        fake_streams.unpacked(found)[...] = result


def _arrays(value):
    """Yield the arrays in nested arguments."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _arrays(one)


def _shares(array: np.ndarray, other: np.ndarray) -> bool:
    return fake_streams.owner_of(array) is fake_streams.owner_of(other)


def _compute(function, args, options):
    """Call a function of NumPy.

    Products of float16 are summed in float32, as cuBLAS does it; those of float32 are of 11 bits where TF32 is set.
    """
    product = function in (np.matmul, np.matmul.__call__)
    if product and compute_types.get(np.float32) == TF32 and all(x.dtype == np.float32 for x in args):
        args = [_eleven_bits(x) for x in args]
    if product and all(x.dtype == np.float16 for x in args) and "out" not in options:
        return np.matmul(*(x.astype(np.float32) for x in args)).astype(np.float16)
    return function(*args, **options)


def _eleven_bits(x: np.ndarray) -> np.ndarray:
    """Truncate float32 numbers to TF32."""
    return (np.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32)


def _product_of_bits(
    _, op_a, op_b, m, n, k, alpha, a, kind_a, lda, b, kind_b, ldb, beta, c, kind_c, ldc, compute, algorithm
):
    """cublasGemmEx, summed in float32: c = op(a) op(b), matrices stored column by column."""
    if fake_streams.capture() is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    fake_streams.counts["product"] += 1
    assert kind_a == kind_b and kind_c == (kind_a if kind_a in (R_32F, R_16F) else R_32F)
    assert compute == COMPUTE_32F or kind_a == R_32F

    def stored(address: int, kind: type, rows: int, columns: int, step: int) -> np.ndarray:
        bits = (ctypes.c_char * (columns * step * np.dtype(kind).itemsize)).from_address(address)
        return np.frombuffer(bits, kind).reshape(columns, step)[:, :rows].T

    kind = {R_32F: np.float32, R_16F: np.float16, R_16BF: np.uint16}[kind_a]
    left = stored(a, kind, k, m, lda).T if op_a else stored(a, kind, m, k, lda)
    right = stored(b, kind, n, k, ldb).T if op_b else stored(b, kind, k, n, ldb)
    if kind_a == R_16BF:
        left, right = ((x.astype(np.uint32) << 16).view(np.float32) for x in (left, right))
    if compute == COMPUTE_FAST_TF32:
        left, right = map(_eleven_bits, (left, right))
    stored(c, np.float16 if kind_c == R_16F else np.float32, m, n, ldc)[...] = left.astype(np.float32) @ right.astype(
        np.float32
    )
    _given_to_cublas.add(c)


# Of each array from `empty`, by its memory: where views begin that a kernel has written.
_unwritten: dict[int, set[int]] = {}
# Addresses that cuBLAS has written to.
_given_to_cublas: set[int] = set()


def _launch_product(run, addresses: list[int], workspace: int) -> None:
    _given_to_cublas.add(addresses[3])
    fake_streams.launch_at(run, addresses, workspace)


def _owner(array: np.ndarray) -> int:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return id(array)


def empty(shape, dtype=float) -> ndarray:
    memory = np.empty(shape, dtype)
    memory.view(np.uint8)[...] = 0xFF if memory.ndim else 0
    _unwritten[id(memory)] = set()
    _given_to_cublas.discard(memory.ctypes.data)
    fake_streams.keep(memory)
    weakref.finalize(memory, _unwritten.pop, id(memory), None)
    return memory.view(ndarray)


class RawModule:
    """Replacement of cupy.RawModule."""

    mode = "fast"

    def __init__(self, *, code: str = "", path: str = "", options: tuple[str, ...] = (), **others):
        if path:
            code, options = fake_hopper.code_of(path)
        self._module = _emulated(code, tuple(options), self.mode)

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self._module.get_function(name))


class RawKernel:
    """Replacement of cupy.RawKernel."""

    _seeds = itertools.count()
    _stream = threading.Lock()  # where launches of all threads wait for each other

    def __init__(self, kernel):
        self._kernel = kernel

    shared_size_bytes = 0  # static; unknown before the kernel has run
    num_regs = local_size_bytes = 0  # what machine code takes, of which there is none

    @property
    def name(self) -> str:
        return self._kernel.name

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
                if argument is None or isinstance(argument, np.ndarray):
                    kind = type(argument).__name__
                    raise TypeError(f"{self._kernel.name}: {name} is {kind}, not an array of the device")
                null = kind[0] != "s" and argument.dtype == np.intp and not argument
                plain.append(None if null else argument)
                continue
            written = _unwritten.get(_owner(argument))
            if written is not None and argument.ctypes.data not in written | _given_to_cublas:
                fresh.append(name)
            plain.append(_span(argument))
        noted = fake_streams.capture()
        if noted is None:
            self._run(grid, block, plain, shared_mem, tuple(fresh))
        else:
            places = fake_streams.packed(plain)
            noted.append(lambda: self._run(grid, block, fake_streams.unpacked(places), shared_mem, ()))
        for kind, argument in zip(self._kernel.signature, args):
            if kind[0] == "p" and isinstance(argument, ndarray) and _owner(argument) in _unwritten:
                _unwritten[_owner(argument)].add(argument.ctypes.data)

    def _run(self, grid, block, arguments, shared_mem: int, uninit: tuple[str, ...]) -> None:
        fake_streams.counts["kernel"] += 1
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        pointers = [kind[0] == "p" for kind in self._kernel.signature]
        written = [argument for argument, out in zip(arguments, pointers) if out and isinstance(argument, np.ndarray)]
        fake_streams.use(arrays, written)
        with self._stream:
            self._kernel(grid, block, arguments, shared_mem=shared_mem, seed=next(self._seeds), uninit=uninit)


def _span(array: np.ndarray) -> np.ndarray:
    """Return the memory from an array's first element to its last, which a kernel may access."""
    if array.flags.c_contiguous:
        return array.view(np.ndarray)
    length = 1 + sum((side - 1) * step for side, step in zip(array.shape, array.strides)) // array.itemsize
    return np.lib.stride_tricks.as_strided(array, (length,), (array.itemsize,)).view(np.ndarray)


@functools.cache
def _emulated(code: str, options: tuple[str, ...], mode: str) -> cuda_emulator.RawModule:
    named = re.match(r'#line 1 "(.+)"', code)
    return cuda_emulator.RawModule(code, options=options, mode=mode, name=named[1] if named else "code.cu")


def module(mode: str = "fast") -> types.ModuleType:
    """Create a module that replaces cupy.

    Parameters
    ----------
    mode : {"fast", "check"}
        Of the emulator.
    """
    fake = types.ModuleType("cupy")
    for name in _CREATING:
        setattr(fake, name, _on_device(getattr(np, name)))
    fake.__getattr__ = _function
    fake.ndarray, fake.empty, fake.asnumpy = ndarray, empty, _to_host
    fake.empty_like = lambda array: empty(array.shape, array.dtype)
    fake.RawModule = type("RawModule", (RawModule,), {"mode": mode})
    pool = types.SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)
    fake.get_default_memory_pool = lambda: pool
    compute_types.clear()
    fake._core = types.SimpleNamespace(
        _routines_linalg=types.SimpleNamespace(
            COMPUTE_TYPE_DEFAULT=1,
            COMPUTE_TYPE_PEDANTIC=2,
            COMPUTE_TYPE_TF32=TF32,
            get_compute_type=lambda dtype: compute_types.get(dtype, 1),
            set_compute_type=compute_types.__setitem__,
        )
    )
    fake.cuda = types.SimpleNamespace(
        cublas=types.SimpleNamespace(
            gemmEx=_product_of_bits,
            CUBLAS_OP_N=0,
            CUBLAS_OP_T=1,
            CUBLAS_COMPUTE_32F=COMPUTE_32F,
            CUBLAS_COMPUTE_32F_PEDANTIC=COMPUTE_32F_PEDANTIC,
            CUBLAS_COMPUTE_32F_FAST_TF32=COMPUTE_FAST_TF32,
            CUBLAS_GEMM_DEFAULT=-1,
        ),
        **{name: getattr(fake_streams, name) for name in _OF_STREAMS},
        Device=lambda *_: types.SimpleNamespace(
            id=0,
            use=lambda: None,
            cublas_handle=0,
            compute_capability="89",
            attributes={"MultiProcessorCount": 3, "MaxSharedMemoryPerBlockOptin": 227 * 1024},
        ),
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: 1,
            runtimeGetVersion=lambda: 12080,
            CUDA_R_32F=R_32F,
            CUDA_R_16F=R_16F,
            CUDA_R_16BF=R_16BF,
            memGetInfo=lambda: (2**30, 2**31),
            CUDARuntimeError=type("CUDARuntimeError", (RuntimeError,), {}),
        ),
        compiler=types.SimpleNamespace(CompileException=type("CompileException", (Exception,), {})),
    )
    return fake


@contextlib.contextmanager
def installed(mode: str = "fast", *, hopper: bool = False):
    """Make ``import cupy`` return such a module inside the context, with empty caches in the modules of kernels.

    Parameters
    ----------
    mode : {"fast", "check"}
        Of the emulator.
    hopper : bool
        Whether the GPU has compute capability 9.0, with NVRTC and a driver to use it; otherwise it is an 8.9.
    """

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
    cublaslt, load = fake_cublaslt.FakeCublasLt(_launch_product), ctypes.CDLL
    nine = fake_hopper.extended(sys.modules["cupy"].cuda) if hopper else contextlib.nullcontext()

    def loaded(name, *args, **options):
        if driver and ("libcuda" in str(name) or "nvcuda" in str(name)):
            return driver
        return cublaslt if "cublasLt" in str(name) else load(name, *args, **options)

    try:
        with nine as driver, unittest.mock.patch.object(ctypes, "CDLL", loaded):
            yield sys.modules["cupy"]
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _function(name: str):
    """Return NumPy's function of a name for arrays of the device; other attributes are returned unchanged."""
    found = getattr(np, name)
    if isinstance(found, type) or not callable(found):
        return found
    return functools.wraps(found, updated=())(lambda *args, **options: _call(found, args, options))


def _call(function, args, options):
    written = options.get("out")
    if isinstance(written, ndarray):
        _unwritten.pop(_owner(written), None)
    found = _by_numpy(function, args, options)
    return found if written is None else written


def _on_device(function):
    @functools.wraps(function)
    def create(*args, **options) -> ndarray:
        if any(isinstance(value, (list, tuple, np.ndarray)) and np.ndim(value) and not isinstance(value, ndarray)
               for value in args[:1]) and function in (np.array, np.asarray):  # fmt: skip
            fake_streams.refuse("a transfer from the host")
            fake_streams.counts["upload"] += 1
            found = function(*args, **options).view(ndarray)
            fake_streams.keep(found)
            fake_streams.use([], [found])
            return found
        return _by_numpy(function, args, options)

    return create

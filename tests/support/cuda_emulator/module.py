"""Emulated kernels in CuPy's call shape: ``RawModule(code).get_function(name)(grid, block, args, shared_mem=...)``."""

from __future__ import annotations

import ctypes
import pathlib
import re
import subprocess

import numpy as np

from . import tensor_map
from .build import build
from .translate import translate

ORDERS = {"forward": 0, "reverse": 1, "random": 2}
STATIC_LIMIT = 48 * 1024  # default limit of static and dynamic shared memory together, in bytes
MOST_SHARED = 227 * 1024  # largest limit, on compute capability 9.0


class KernelError(RuntimeError):
    """Faults of a launch, one per line: kind, source line, buffer, block and thread of the first one, count."""


class RawModule:
    """A .cu file that runs on the CPU.

    Parameters
    ----------
    code : str
        The text of the file.
    options : tuple of str
        As for NVRTC; ``-DNAME=VALUE`` counts.
    mode : {"fast", "check"}
        "check" reports races, accesses out of bounds, uninitialized reads and barriers that not all threads reach.
    name : str
        What reports call the file.
    arch : int
        Compute capability that ``__CUDA_ARCH__`` announces.
    """

    def __init__(
        self, code: str, options: tuple[str, ...] = (), mode: str = "fast", name: str = "code.cu", arch: int = 90
    ):
        self.name, self.mode = name, mode
        translation = translate(code, name, tuple(options), arch)
        self.parameters = translation.kernels
        self.dynamic_limits: dict[
            str, int
        ] = {}  # by kernel; they are properties of the function, not of Kernel objects
        self.path = build(translation, name, mode)
        self.library = _load(self.path)
        self.code_range = _mapped(self.path)

    def get_function(self, name: str) -> Kernel:
        """Return the kernel with this name."""
        if name not in self.parameters:
            raise KeyError(f"{self.name} has no kernel {name}; it has {', '.join(self.parameters)}")
        return Kernel(self, name)


class Kernel:
    """One kernel; call it to launch it.

    Arrays are C-contiguous NumPy arrays of the type the parameter points to; scalars are NumPy scalars of exactly the
    parameter's type, because CuPy passes their bytes on as they are.
    """

    def __init__(self, module: RawModule, name: str):
        self.module, self.name = module, name
        library = module.library
        signature = library[f"emu_signature_{name}"]
        signature.restype = ctypes.c_char_p
        self.signature = signature().decode().split(",")[:-1]
        self.max_threads_per_block = library[f"emu_threads_{name}"]()
        self._entry = ctypes.cast(library[f"emu_run_{name}"], ctypes.c_void_p).value

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Return the limit, which all Kernel objects of one kernel share, as on a GPU."""
        return self.module.dynamic_limits.get(self.name, STATIC_LIMIT)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.module.dynamic_limits[self.name] = size

    def __call__(
        self,
        grid,
        block,
        args,
        shared_mem: int = 0,
        *,
        order: str = "random",
        seed: int = 0,
        uninit: tuple[str, ...] = (),
    ) -> None:
        """Launch the kernel, wait for it, and copy the results back.

        Parameters
        ----------
        grid, block : tuple of int
        args : tuple
        shared_mem : int
            Bytes of dynamic shared memory.
        order : {"random", "forward", "reverse"}
            In which threads and blocks take turns.
        seed : int
            Of the random order.
        uninit : tuple of str
            Parameters whose arrays hold nothing yet: reading them before writing is a fault.

        Raises
        ------
        TypeError
            If the arguments don't fit the kernel's parameters.
        KernelError
            If the launch is impossible, or something was found.
        """
        grid, block = _three(grid), _three(block)
        self._check_launch(grid, block, args, shared_mem)
        library = self.module.library
        try:
            pointers, buffers = self._marshal(args, uninit)
            count = library.emu_launch(
                self._entry,
                pointers,
                (ctypes.c_uint * 3)(*grid),
                (ctypes.c_uint * 3)(*block),
                shared_mem,
                MOST_SHARED if self.name in self.module.dynamic_limits else STATIC_LIMIT,
                ORDERS[order],
                seed,
                *self.module.code_range,
            )
            messages = [self._fault(i) for i in range(count)]
            for array, address in buffers:
                ctypes.memmove(array.ctypes.data, address, array.nbytes)
        finally:
            library.emu_free_all()
        if messages:
            raise KernelError("\n".join(messages))

    def _check_launch(self, grid, block, args, shared_mem: int) -> None:
        if len(args) != len(self.signature):
            raise TypeError(f"{self.name} takes {len(self.signature)} arguments, not {len(args)}")
        if min(grid) < 1 or min(block) < 1 or grid[1] > 65535 or grid[2] > 65535:
            raise KernelError(f"{self.name}: invalid grid {grid} or block {block}")
        if np.prod(block) > self.max_threads_per_block:
            raise KernelError(
                f"{self.name}: a block of {block} exceeds its __launch_bounds__ of {self.max_threads_per_block}"
            )
        if shared_mem > min(self.max_dynamic_shared_size_bytes, MOST_SHARED):
            raise KernelError(f"{self.name}: {shared_mem} bytes of shared memory exceed max_dynamic_shared_size_bytes")

    def _marshal(self, args, uninit):
        """Pass arguments by address, arrays as copies between guards; an array given twice is one buffer."""
        library, names = self.module.library, self.module.parameters[self.name]
        pointers, keep, placed, back = (ctypes.c_void_p * len(args))(), [], {}, []
        written = {
            a.ctypes.data for a, kind in zip(args, self.signature) if kind[0] == "p" and isinstance(a, np.ndarray)
        }
        for i, (argument, kind, name) in enumerate(zip(args, self.signature, names)):
            if kind[0] == "s":
                _check_scalar(argument, kind[1:], f"{self.name}: {name}")
                data = np.asarray(argument).tobytes()
                if tensor_map.is_map(argument):
                    data = tensor_map.moved(argument, self._place_readonly)
                holder = _aligned(data.ljust(1, b"\0"))
            elif argument is None:
                holder = ctypes.c_void_p(None)
            else:
                _check_array(argument, kind[1:], f"{self.name}: {name}")
                start = argument.ctypes.data
                if start not in placed:
                    size = max(a.nbytes for a in args if isinstance(a, np.ndarray) and a.ctypes.data == start)
                    address = library.emu_allocate(max(size, 1))
                    ctypes.memmove(address, start, argument.nbytes)
                    library.emu_region(
                        address, size, min(4, argument.itemsize), start not in written, name in uninit, name.encode()
                    )
                    placed[start] = address
                if kind[0] == "p":
                    back.append((argument, placed[start]))
                holder = ctypes.c_void_p(placed[start])
            keep.append(holder)
            pointers[i] = ctypes.cast(ctypes.pointer(holder), ctypes.c_void_p)
        self._keep = keep  # until the next launch
        return pointers, back

    def _place_readonly(self, address: int, size: int) -> int:
        """Copy memory that a tensor map describes between guards."""
        library = self.module.library
        placed = library.emu_allocate(size)
        ctypes.memmove(placed, address, size)
        library.emu_region(placed, size, 2, 1, 0, b"tensor")
        return placed

    def _fault(self, i: int) -> str:
        kind, where, numbers = ctypes.create_string_buffer(200), ctypes.create_string_buffer(200), (ctypes.c_uint * 5)()
        self.module.library.emu_fault(i, kind, where, numbers)
        code, other, block, thread, times = numbers
        against = f" against {self._line(other)}" if other else ""
        first = f"[{where.value.decode()}] block {block} thread {thread}, {times} times"
        return f"{self.name}: {kind.value.decode()} at {self._line(code)}{against} {first}"

    def _line(self, code: int) -> str:
        """Return the source line of an address in the library, such as "kmeans.cu:42"."""
        command = ["addr2line", "-i", "-e", str(self.module.path), hex(code)]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        named = [pathlib.Path(line.split(" ")[0]).name for line in lines]
        own = [line for line in named if re.match(r"[\w.-]+\.cuh?:\d+", line)]
        return (own or named or ["?"])[0]


def _aligned(data: bytes) -> ctypes.Array:
    """Return a copy of bytes at a multiple of 64, as structures of kernels want it."""
    room = ctypes.create_string_buffer(len(data) + 64)
    holder = (ctypes.c_char * len(data)).from_buffer(room, -ctypes.addressof(room) % 64)
    holder.raw = data
    return holder


def _three(size) -> tuple[int, ...]:
    size = tuple(int(s) for s in (size if isinstance(size, (tuple, list)) else (size,)))
    return size + (1,) * (3 - len(size))


def _check_scalar(argument, kind: str, name: str) -> None:
    dtype = getattr(argument, "dtype", None)
    if dtype is None or np.ndim(argument):
        raise TypeError(f"{name} wants a NumPy scalar of type {kind}, not {type(argument).__name__}")
    if kind[0] != "x" and f"{dtype.kind}{dtype.itemsize}" != kind:
        raise TypeError(f"{name} wants a scalar of type {kind}, not {dtype}")


def _check_array(argument, kind: str, name: str) -> None:
    if not isinstance(argument, np.ndarray) or not argument.flags.c_contiguous:
        raise TypeError(f"{name} wants a C-contiguous array")
    dtype = argument.dtype
    same = f"{dtype.kind}{dtype.itemsize}" == kind or (
        dtype.kind in "iub" and kind[0] in "iub" and dtype.itemsize == int(kind[1:])
    )
    if kind[0] != "x" and not same:
        raise TypeError(f"{name} wants an array of {kind}, not of {dtype}")


def _load(path: pathlib.Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.emu_allocate.restype = ctypes.c_void_p
    library.emu_allocate.argtypes = [ctypes.c_size_t]
    library.emu_region.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_char_p,
    ]
    library.emu_launch.argtypes = [ctypes.c_void_p] * 4 + [
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_size_t,
        ctypes.c_size_t,
    ]
    return library


def _mapped(path: pathlib.Path) -> tuple[int, int]:
    """Return the memory ranges of the library, to recognize its constants and to convert code addresses to lines."""
    ranges = [
        line.split()[0].split("-")
        for line in pathlib.Path("/proc/self/maps").read_text().splitlines()
        if str(path) in line
    ]
    return min(int(low, 16) for low, _ in ranges), max(int(high, 16) for _, high in ranges)

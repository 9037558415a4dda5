"""Functions that are compiled once per machine, and whose machine code is cached under a fingerprint of their sources.

A command calls some of the kernels, so each is compiled, or loaded from disk, when it is first called. numba is only
imported to compile one: machine code is loaded and called without it.

All kernels share :mod:`vitnp.kernels.cpu.codegen.simd`, so the cache folder is named after the text of all of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import llvmlite
import numpy as np
from vitnp.kernels.cpu.codegen import loader, types
from vitnp.kernels.cpu.codegen.cache import SUFFIX, claim, open_folder, read_kernel, say_compiling, write_kernel
from vitnp.kernels.cpu.codegen.loader import Compiled
from vitnp.kernels.cpu.codegen.target import numba_version, target
from vitnp.kernels.threads.fork import importing

from vitnp.cached import cached_property

# What the compiler may do to expressions. "reassoc" is missing, since with it the compiler chooses the order of sums,
# and so their last bits.
OPTIONS: dict[str, Any] = {"fastmath": {"contract", "nsz", "arcp"}}


class NoCache(ImportError):
    """No folder for compiled kernels can be used; an ImportError, so that vitnp falls back to kernels in NumPy."""


class Intrinsic:
    """A function that generates LLVM IR, for kernels to call; see :func:`intrinsic`."""

    def __init__(self, function: Callable) -> None:
        self.function, self.__doc__, self.__qualname__ = function, function.__doc__, function.__qualname__

    @cached_property
    def _numba_type_(self) -> Any:
        from vitnp.kernels.cpu.codegen import compiler

        return compiler.type_of_intrinsic(self)


class Part:
    """A function that becomes part of the kernels that call it, compiled with them for the types of their arguments.

    Called in Python, it runs in Python.
    """

    def __init__(self, function: Callable, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.options = function, options

    def __call__(self, *arguments: Any) -> Any:
        """Call the function in Python."""
        return self.function(*arguments)

    @cached_property
    def _numba_type_(self) -> Any:
        from vitnp.kernels.cpu.codegen import compiler

        return compiler.type_of_part(self)


class Kernel:
    """A function that Python calls and that is compiled, or loaded from disk, at its first call.

    Other kernels cannot call it unless it is shared: what they share are functions decorated without a signature.

    Parameters
    ----------
    function : callable
    signature : tuple of types
        Types of the arguments; the function is compiled for these only.
    options : dict
        As OPTIONS.
    shared : bool
        Whether other kernels call it too: its machine code, not a copy of it.
    """

    def __init__(
        self, function: Callable, signature: tuple[types.Type, ...], options: dict[str, Any], shared: bool
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.signature, self.options, self.shared = function, signature, options, shared
        self.was_cached = False  # whether the machine code was on disk already
        self._loaded: Callable | None = None
        self._compiled: Compiled | None = None
        self._address = 0
        KERNELS.append(self)

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        function: Callable = self._loaded or self.compile()  # type: ignore[assignment]  # it is compiled now
        try:
            return function(*arguments)
        except TypeError:
            aligned = [self._aligned(*each) for each in zip(self.signature, arguments)]
            if all(one is other for one, other in zip(aligned, arguments)):
                raise
            return function(*aligned)

    @staticmethod
    def _aligned(kind: types.Type, argument: Any) -> Any:
        """Return an array that is read, or a copy of it if its numbers are not aligned, as in messages."""
        if isinstance(kind, types.Array) and kind.readonly and isinstance(argument, np.ndarray):
            return np.require(argument, requirements="A")
        return argument

    @cached_property
    def symbol(self) -> str:
        """Name of the machine code, which tells all that sources and versions do not decide."""
        function = self.function
        code = function.__code__
        closure = [_describe(cell.cell_contents) for cell in function.__closure__ or ()]
        key = repr((self.signature, target(), code.co_code, closure))
        module, name = function.__module__.rpartition(".")[2], function.__qualname__.replace("<locals>.", "")
        return f"{module}.{name}-{code.co_firstlineno}.{hashlib.sha256(key.encode()).hexdigest()[:20]}"

    @property
    def path(self) -> pathlib.Path:
        """File of the machine code."""
        return cache_folder() / f"{self.symbol}{SUFFIX}"

    def compile(self, *, if_free: bool = False) -> Callable | None:
        """Compile the function, or load it from disk, unless that has been done; return it.

        Parameters
        ----------
        if_free : bool
            Return None, instead of waiting, while another process compiles it.
        """
        with importing:  # held by one thread at a time
            if self._loaded is None:
                self._loaded = self._from_disk()
                self.was_cached = self._loaded is not None
            while self._loaded is None:
                with claim(self.path) as claimed:
                    if claimed:
                        # Another process may have finished it since.
                        self._loaded = self._from_disk() or self._anew()
                if self._loaded is None and (if_free or not while_waiting()):
                    if if_free:
                        return None
                    with claim(self.path, wait=True):
                        self._loaded = self._from_disk() or self._anew()
        return self._loaded

    def is_cached(self) -> bool:
        """Return whether the function has been loaded, or there is a file of it."""
        return self._loaded is not None or self.path.exists()

    def _from_disk(self) -> Callable | None:
        compiled = read_kernel(self.path)
        return None if compiled is None else self._load(compiled)

    def _anew(self) -> Callable:
        say_compiling()
        from vitnp.kernels.cpu.codegen import compiler

        compiled = compiler.compile_kernel(self)
        write_kernel(self.path, compiled)
        loaded = self._load(compiled)
        if loaded is None:
            raise RuntimeError(f"the machine code of {self.symbol} cannot be loaded")
        return loaded

    def _load(self, compiled: Compiled) -> Callable | None:
        """Return the function of machine code; None if the kernels that it calls are others."""
        for symbol in compiled.kernels:
            callee = next((kernel for kernel in KERNELS if kernel.shared and kernel.symbol == symbol), None)
            if callee is None:
                return None
            callee.compile()
        if not loader.has_symbols(compiled.externals):
            return None
        self._compiled = compiled
        function, self._address = loader.load(self.symbol, compiled.code)
        return function

    @property
    def address(self) -> int:
        """Address of the function that other kernels call, by numba's calling convention."""
        self.compile()
        return self._address

    def result(self) -> str:
        """Return the name of numba's type of the result; this compiles the function."""
        self.compile()
        assert self._compiled is not None
        return self._compiled.result

    @property
    def _numba_type_(self) -> Any:
        """Type of the function within other kernels; numba asks for it when it compiles them."""
        if not self.shared:
            raise AttributeError(f"{self.function.__name__} is called by another kernel, so it needs shared=True")
        from vitnp.kernels.cpu.codegen import compiler

        return compiler.type_of_shared(self)


def while_waiting() -> bool:
    """Do something else before waiting for another process; return False if there is nothing to do."""
    return False


# Kernels of all modules that have been imported, in the order of their definitions.
KERNELS: list[Kernel] = []


def kernel(*signature: Any, shared: bool = False, **options: Any) -> Callable:
    """Compile a function with numba, without the GIL, and cache the machine code on disk; a decorator.

    Kernels use numbers and arrays that they are given, and do not allocate memory; see
    :func:`vitnp.kernels.cpu.codegen.stack.stack_array` for a few numbers.

    Parameters
    ----------
    *signature : types
        Types of the arguments, see :mod:`vitnp.kernels.cpu.codegen.types`; IN and OUT give those of arrays. The result
        is a :class:`Kernel`, for Python to call. Without a signature the function is compiled as a part of each kernel
        that calls it.
    shared : bool
        Whether other kernels call a function with a signature too.
    **options
        Options that override OPTIONS.

    Returns
    -------
    callable
        The compiled function; without signature or options, ``@kernel`` is used without parentheses.

    Examples
    --------
    >>> @kernel(types.int64, types.int64)
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    """
    if len(signature) == 1 and callable(signature[0]) and not isinstance(signature[0], (types.Scalar, types.Array)):
        return Part(signature[0], OPTIONS)
    for each in signature:
        if not isinstance(each, (types.Scalar, types.Array)):
            raise TypeError(f"types of arguments are those of vitnp.kernels.cpu.codegen.types, not {each!r}")

    def decorate(function: Callable) -> Callable:
        if signature:
            return Kernel(function, signature, OPTIONS | options, shared)
        return Part(function, OPTIONS | options)

    return decorate


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let kernels call a function that generates LLVM IR; a decorator.

    Kernels call it without its first parameter, the typing context, and this is what the annotation says. See
    :func:`numba.extending.intrinsic`.
    """
    return Intrinsic(function)  # type: ignore[return-value]


def IN(dimensions: int, dtype: types.Scalar = types.float32) -> types.Array:
    """Return the type of an array that is read: with any strides, writable or not."""
    return types.Array(dtype, dimensions, "A", readonly=True)


def OUT(dimensions: int, dtype: types.Scalar = types.float32, layout: Literal["A", "C"] = "A") -> types.Array:
    """Return the type of an array that is written: with any strides, or contiguous with layout "C"."""
    return types.Array(dtype, dimensions, layout)


def array_in(dimensions: int, dtype: types.Scalar = types.float32) -> types.Array:
    """Return the type of a contiguous array that is read."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def array_out(dimensions: int, dtype: types.Scalar = types.float32) -> types.Array:
    """Return the type of a contiguous array that is written."""
    return types.Array(dtype, dimensions, "C")


def _describe(value: Any) -> str:
    """Describe a value that a function refers to."""
    name = getattr(value, "symbol", None) or getattr(value, "__qualname__", None)
    return str(name) if name else repr(value)


@functools.cache
def cache_folder() -> pathlib.Path:
    """Return the folder for machine code, which exists; it is read-only only if it holds some.

    It is a subfolder of VITNP_CACHE if that is set, else of the platform's cache folder.

    Raises
    ------
    NoCache
        If the folder cannot be created or read, belongs to another user, or may be written by others.
    """
    cache = os.environ.get("VITNP_CACHE")
    if cache:
        parent = pathlib.Path(cache).expanduser().absolute()
    else:
        import platformdirs

        parent = pathlib.Path(platformdirs.user_cache_dir("vitnp"))
    folder = parent / "kernels" / _fingerprint()
    try:
        open_folder(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of a user without a home
        reason = getattr(error, "strerror", None) or error
        raise NoCache(f"{folder} cannot be used for them ({reason}); set VITNP_CACHE to a folder of your own") from None
    return folder


def _fingerprint() -> str:
    """Return a hash of everything that determines the machine code, except the processor, see `Kernel.symbol`."""
    versions = f"{numba_version()} {llvmlite.__version__} {os.environ.get('VITNP_LANES', '')}"
    digest = hashlib.sha256(versions.encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

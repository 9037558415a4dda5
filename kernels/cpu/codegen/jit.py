"""Compile kernels with numba, once per machine, and cache the machine code under a fingerprint of their sources.

A command calls some of the kernels, so each is compiled, or loaded from disk, when it is first called.

numba's own cache notices a change of the file that contains a function, but not of files whose helpers were inlined
into it. All kernels share :mod:`vitnp.kernels.cpu.codegen.simd`, so the cache folder is named after the text of all of
them. It also believes whatever it finds, so the files are read and written by :mod:`vitnp.kernels.cpu.codegen.cache`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import llvmlite
import numba
import numba.extending
from numba import types
from numba.core.registry import CPUDispatcher
from vitnp.kernels.cpu.codegen.cache import KernelCache, open_folder
from vitnp.kernels.threads.fork import importing

from vitnp.cached import cached_property

# error_model: a division by zero gives infinity, as in NumPy, instead of an exception. fastmath: what the compiler may
# do to expressions; "reassoc" is missing, since with it the compiler chooses the order of sums, and so their last bits.
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp"},
}

# numba's decorator for functions that generate LLVM IR. Kernels call such a function without its first parameter, the
# typing context, and this is what the annotation says.
intrinsic: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.extending.intrinsic


class NoCache(ImportError):
    """No folder for compiled kernels can be used; an ImportError, so that vitnp falls back to kernels in NumPy."""


class Kernel:
    """A function that Python calls and that is compiled, or loaded from disk, at its first call.

    Other kernels cannot call it unless it is shared: what they share are functions decorated without a signature.

    Parameters
    ----------
    function : callable
    signature : tuple of numba types
        Types of the arguments; the function is compiled for these only.
    options : dict
        Options of :func:`numba.njit`.
    shared : bool
        Whether other kernels call it too.
    """

    def __init__(
        self, function: Callable, signature: tuple[types.Type, ...], options: dict[str, Any], shared: bool
    ) -> None:
        functools.update_wrapper(self, function)
        self._function, self.signature, self._options, self._shared = function, signature, options, shared
        self._compiled: Callable | None = None
        KERNELS.append(self)

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function."""
        return (self._compiled or self.compile())(*arguments)

    def compile(self) -> Callable:
        """Compile the function, or load it from disk, unless that has been done; return it."""
        with importing:  # held by one thread at a time
            if self._compiled is None:
                dispatcher = numba.njit(**self._options)(self._function)
                if isinstance(dispatcher, CPUDispatcher):  # with NUMBA_DISABLE_JIT=1 it is the plain function
                    dispatcher._cache = KernelCache(self._function, cache_folder(), shared=self._shared)  # type: ignore[attr-defined]  # numba has no public interface
                    dispatcher.compile(self.signature)
                    dispatcher.disable_compile()
                self._compiled = dispatcher
        return self._compiled

    @cached_property
    def address(self) -> int:
        """Address of the compiled function, for :func:`vitnp.kernels.cpu.codegen.calls.caller`."""
        (result,) = self.compile().overloads.values()  # type: ignore[attr-defined]
        # Not asked of the library, which knows only functions whose LLVM code it has.
        return result.library.codegen._engine.get_function_address(result.fndesc.llvm_func_name)

    @property
    def _numba_type_(self) -> types.Type:
        """Type of the function within other kernels; numba asks for it when it compiles them."""
        if not self._shared:
            raise AttributeError(f"{self._function.__name__} is called by another kernel, so it needs shared=True")
        return numba.typeof(self.compile())


# Kernels of all modules that have been imported, in the order of their definitions.
KERNELS: list[Kernel] = []


def kernel(*signature: Any, shared: bool = False, **options: Any) -> Callable:
    """Compile a function with numba, without the GIL, and cache the machine code on disk; a decorator.

    Parameters
    ----------
    *signature : numba types
        Types of the arguments; IN and OUT give those of arrays. The result is a :class:`Kernel`, for Python to call.
        Without a signature the function is compiled when a kernel that calls it is, for each new combination of types.
    shared : bool
        Whether other kernels call a function with a signature too.
    **options
        Options of :func:`numba.njit` that override OPTIONS.

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
    if len(signature) == 1 and callable(signature[0]) and not isinstance(signature[0], types.Type):
        return kernel()(signature[0])

    def decorate(function: Callable) -> Callable:
        if signature:
            return Kernel(function, signature, OPTIONS | options, shared)
        dispatcher = numba.njit(**(OPTIONS | options))(function)
        if isinstance(dispatcher, CPUDispatcher):
            dispatcher._cache = KernelCache(function, cache_folder(), shared=True)  # type: ignore[attr-defined]  # numba has no public interface
        return dispatcher

    return decorate


def IN(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Return the type of an array that is read: with any strides, writable or not."""
    return types.Array(dtype, dimensions, "A", readonly=True, aligned=True)


def OUT(dimensions: int, dtype: types.Type = types.float32, layout: Literal["A", "C"] = "A") -> types.Array:
    """Return the type of an array that is written: with any strides, or contiguous with layout "C"."""
    return types.Array(dtype, dimensions, layout)


def array_in(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Return the type of a contiguous array that is read."""
    return types.Array(dtype, dimensions, "C", readonly=True)


def array_out(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Return the type of a contiguous array that is written."""
    return types.Array(dtype, dimensions, "C")


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
    """Return a hash of everything that determines the machine code, except the processor, which numba itself checks."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {os.environ.get('VITNP_LANES', '')}".encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

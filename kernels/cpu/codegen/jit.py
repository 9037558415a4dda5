"""Compile kernels with numba, once per machine, and cache the machine code under a fingerprint of their sources.

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


def kernel(*signature: Any, **options: Any) -> Callable:
    """Compile a function with numba, without the GIL, and cache the machine code on disk; a decorator.

    Parameters
    ----------
    *signature : numba types
        Types of the arguments; IN and OUT give those of arrays. The function is compiled at once, for these types only.
        Without a signature it is compiled when it is called, for each new combination of types: this is meant for
        functions that are called by kernels.
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

    def compile(function: Callable) -> Callable:
        dispatcher = numba.njit(**(OPTIONS | options))(function)
        if isinstance(dispatcher, CPUDispatcher):  # with NUMBA_DISABLE_JIT=1 it is the plain function
            dispatcher._cache = KernelCache(function, cache_folder())  # type: ignore[attr-defined]  # numba has no public interface
            if signature:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return compile


def IN(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Return the type of an array that is read: with any strides, writable or not."""
    return types.Array(dtype, dimensions, "A", readonly=True, aligned=True)


def OUT(dimensions: int, dtype: types.Type = types.float32, layout: Literal["A", "C"] = "A") -> types.Array:
    """Return the type of an array that is written: with any strides, or contiguous with layout "C"."""
    return types.Array(dtype, dimensions, layout)


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

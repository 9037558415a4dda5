"""Compile kernels with numba, once per machine, and cache the machine code under a fingerprint of their sources.

numba's own cache notices a change of the file that contains a function, but not of files whose helpers were inlined
into it. All kernels share :mod:`vitnp.kernels.cpu.codegen.simd`, so the cache folder is named after the text of all of
them.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, Literal

import llvmlite
import numba
import numba.extending
from numba import types
from numba.core import caching
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys

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

_logger = logging.getLogger(__name__)
_logged = threading.Event()


class NoCache(ImportError):
    """No folder for compiled kernels can be written; an ImportError, so that vitnp falls back to kernels in NumPy."""


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
            dispatcher._cache = _Cache(function)  # type: ignore[attr-defined]  # numba has no public interface for this
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
    """Return the folder for machine code, which exists and is writable.

    It is a subfolder of VITNP_CACHE if that is set, else of the platform's cache folder.

    Raises
    ------
    NoCache
        If the folder cannot be created or written.
    """
    cache = os.environ.get("VITNP_CACHE")
    if cache:
        parent = pathlib.Path(cache).expanduser().absolute()
    else:
        import platformdirs

        parent = pathlib.Path(platformdirs.user_cache_dir("vitnp"))
    folder = parent / "kernels" / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NoCache(
            f"{folder} cannot be written ({error.strerror or error}); set VITNP_CACHE to a writable folder"
        ) from None
    return folder


def _fingerprint() -> str:
    """Return a hash of everything that determines the machine code, except the processor, which numba itself checks."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {os.environ.get('VITNP_LANES', '')}".encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):
    """Locate the machine code of every function in :func:`cache_folder`."""

    def __init__(self, function: Callable):
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return cache_folder().name

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Implementation(caching.CompileResultCacheImpl):
    """Use :class:`_Locator` only, whatever the environment variables of numba say."""

    def __init__(self, function: Callable):
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))

    def check_cachable(self, result: object) -> bool:
        return True


class _Cache(caching.FunctionCache):
    """Log a message once per process if something has to be compiled."""

    _impl_class = _Implementation

    def load_overload(self, signature: object, target_context: object) -> object:
        # The base class would first import everything that is needed for compiling, which takes a third of a second.
        # Cached machine code needs only the runtime.
        rtsys.initialize(target_context)
        overload = self._load_overload(signature, target_context)
        if overload is None and not _logged.is_set():
            _logged.set()
            _logger.info("compiling kernels for this processor; they are cached, so this happens once")
        return overload

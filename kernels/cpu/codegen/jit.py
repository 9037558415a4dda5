"""How the kernels of this folder are compiled: by numba, once a machine, kept on disk under a fingerprint of their own sources.

numba's ordinary cache notices a change of the file a function stands in, but not of a file whose helpers were compiled into it.
All kernels here share :mod:`vitnp.kernels.cpu.codegen.simd`, so the cache folder is named after the text of all of them together.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable

import llvmlite
import numba
from numba import types
from numba.core import caching
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys

from vitnp import kernels

# error_model: a division by zero gives infinity, as NumPy's does, where Python's would raise. Reassociation of sums stays
# forbidden everywhere: with it the order of a sum, and so its last bit, would be the compiler's choice and not ours.
OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}

_announced = threading.Event()


class NoCache(ImportError):
    """There is nowhere to keep compiled kernels."""


def kernel(*signature: types.Type, **options) -> Callable:
    """Decorator: compile a function with numba, without the GIL, and keep the machine code on disk.

    Parameters
    ----------
    *signature : numba types
        Of the arguments. The function is compiled for them alone, at once; IN and OUT make the types of arrays. Without any it's
        compiled when it is called, for each new combination of types: for functions that kernels call.
    **options
        Of :func:`numba.njit`, over those in OPTIONS.

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
        if isinstance(dispatcher, CPUDispatcher):  # with NUMBA_DISABLE_JIT=1 it's the plain function
            dispatcher._cache = _Cache(function)
            if signature:
                dispatcher.compile(signature)
                dispatcher.disable_compile()
        return dispatcher

    return compile


def IN(dimensions: int, dtype: types.Type = types.float32) -> types.Array:
    """Type of an array that is read: of any strides, whether it may be written or not."""
    return types.Array(dtype, dimensions, "A", readonly=True, aligned=True)


def OUT(dimensions: int, dtype: types.Type = types.float32, layout: str = "A") -> types.Array:
    """Type of an array that is written: of any strides, or with layout "C" in one piece."""
    return types.Array(dtype, dimensions, layout)


@functools.cache
def cache_folder() -> pathlib.Path:
    """Where machine code is kept: a folder that exists and can be written.

    It lies below VITNP_CACHE where that is set, else below the platform's folder for caches.

    Raises
    ------
    NoCache
        If it can't be made, or nothing can be written there.
    """
    chosen = os.environ.get("VITNP_CACHE")
    if chosen:
        above = pathlib.Path(chosen).expanduser().absolute()
    else:
        import platformdirs

        above = pathlib.Path(platformdirs.user_cache_dir("vitnp"))
    folder = above / "kernels" / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise NoCache(
            f"{folder} can't be written ({error.strerror or error}); set VITNP_CACHE to a folder that can"
        ) from None
    return folder


def _fingerprint() -> str:
    """Of everything that decides the machine code, but for the processor, which numba looks after itself."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {os.environ.get('VITNP_LANES', '')}".encode())
    for path in sorted(pathlib.Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):
    """Puts a function's machine code into the one folder."""

    def __init__(self, function: Callable):
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return cache_folder().name

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable, file: str) -> _Locator:
        return cls(function)


class _Implementation(caching.CompileResultCacheImpl):
    """Asks for no other place than ours, whatever numba is told in the environment."""

    def __init__(self, function: Callable):
        self._lineno = function.__code__.co_firstlineno
        self._locator = _Locator(function)
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))

    def check_cachable(self, result: object) -> bool:
        return True


class _Cache(caching.FunctionCache):
    """Says so when something has to be compiled."""

    _impl_class = _Implementation

    def load_overload(self, signature: object, target_context: object) -> object:
        # numba would import all that it can compile with first, a third of a second. Machine code needs only the runtime.
        rtsys.initialize(target_context)
        found = self._load_overload(signature, target_context)
        if found is None and not _announced.is_set():
            _announced.set()
            kernels.say("compiling kernels for this processor; they are kept, so this happens once")
        return found

"""Numerical operations with one implementation per device, all with the same names and signatures.

``reference`` defines every operation in plain NumPy: it is the specification, the oracle of the tests and the fallback.
``cpu`` contains the operations compiled with numba, and ``cuda`` those for CuPy arrays. Callers ask :func:`for_device`
or :func:`for_array` for the operations and do not need to know which implementation they get. numba and CuPy are
imported only when they are needed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from vitnp.errors import DeviceError, UsageError
from vitnp.options import DEVICES

if TYPE_CHECKING:
    import cupy
    import numpy as np

_logger = logging.getLogger(__name__)


def choose_device(device: str = "auto") -> str:
    """Resolve the name of a device to the one that is used.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}
        "auto" means "cuda" if a GPU can be used, else "cpu".

    Returns
    -------
    {"cpu", "cuda"}

    Raises
    ------
    DeviceError
        If "cuda" is requested and cannot be used; the message says why and what to do.
    UsageError
        If the name is unknown.

    Examples
    --------
    >>> choose_device("cpu")
    'cpu'
    """
    if device not in DEVICES:
        raise UsageError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu":
        return "cpu"
    from vitnp.kernels.cuda.device import check

    try:
        check()
    except DeviceError:
        if device == "cuda":
            raise
        return "cpu"
    return "cuda"


def for_device(device: str = "cpu") -> ModuleType:
    """Return the module with the operations for a device.

    On the CPU these are the compiled operations, unless numba is missing, there is no folder for compiled code, or the
    environment variable VITNP_KERNELS is "reference".

    Parameters
    ----------
    device : {"cpu", "cuda", "reference"}
        Device of the arrays; "reference" always means the plain NumPy operations.

    Returns
    -------
    module
        Has the names of :mod:`vitnp.kernels.reference`; for "cuda" only those that have a kernel.

    Raises
    ------
    UsageError
        If the device is unknown, or VITNP_KERNELS has another value than "reference", "compiled" or none.

    Examples
    --------
    >>> for_device("cpu").precisions()[0]
    'fp32'
    """
    if device == "reference":
        return _for_cpu("reference")
    if device == "cpu":
        return _for_cpu(os.environ.get("VITNP_KERNELS", ""))
    if device == "cuda":
        from vitnp.kernels.cuda import dispatch

        return dispatch
    raise UsageError(f"device must be one of {', '.join(DEVICES[1:])}, got {device!r}")


def device_of(x: object) -> str:
    """Return the device of an array.

    Examples
    --------
    >>> device_of([1, 2])
    'cpu'
    """
    return "cuda" if type(x).__module__.partition(".")[0] == "cupy" else "cpu"


def for_array(x: object) -> ModuleType:
    """Return the module with the operations for the device of an array; see :func:`for_device`."""
    return for_device(device_of(x))


def array_module(x: object) -> ModuleType:
    """Return the module with NumPy's functions for an array: ``numpy`` or ``cupy``.

    Examples
    --------
    >>> array_module([1, 2]).__name__
    'numpy'
    """
    import numpy

    return sys.modules["cupy"] if device_of(x) == "cuda" else numpy


def to_host(x: np.ndarray | cupy.ndarray) -> np.ndarray:
    """Return a NumPy array unchanged, and a CuPy array as a copy in host memory."""
    return sys.modules["cupy"].asnumpy(x) if device_of(x) == "cuda" else x


def to_device(x: np.ndarray | cupy.ndarray, device: str) -> np.ndarray | cupy.ndarray:
    """Return an array unchanged if it is on the device already, else a copy on the device.

    Examples
    --------
    >>> to_device([1, 2], "cpu")
    [1, 2]
    """
    if device == "cpu":
        return to_host(x)
    from vitnp.kernels.cuda.loader import require_cupy

    return require_cupy().asarray(x)


def own_stream(device: str) -> contextlib.AbstractContextManager[None]:
    """Return a context manager in which this thread's work on a GPU overlaps with other threads'; see the CUDA module.

    On the CPU it does nothing.
    """
    return contextlib.nullcontext() if device == "cpu" else for_device(device).own_stream()


def hand_over(device: str) -> Callable[[], None]:
    """Return a function that another thread calls before it uses what this one has computed on a device.

    On a GPU it makes that thread's stream wait, and not the host; see the CUDA module. On the CPU it does nothing.
    """
    return (lambda: None) if device == "cpu" else for_device(device).hand_over()


def name_of(device: str) -> str:
    """Return the name of a device with its index: "cpu", "cuda:0".

    Examples
    --------
    >>> name_of("cpu")
    'cpu'
    """
    if device == "cpu":
        return device
    from vitnp.kernels.cuda.loader import require_cupy

    return f"{device}:{require_cupy().cuda.Device().id}"


@functools.cache
def _for_cpu(variant: str) -> ModuleType:
    """Return the operations for the CPU: "reference", "compiled", or "" for the compiled ones where possible."""
    from vitnp.kernels import reference

    if variant not in ("", "reference", "compiled"):
        raise UsageError(f"VITNP_KERNELS must be reference, compiled or unset, got {variant!r}")
    if variant == "reference":
        return reference
    from vitnp.kernels.threads.fork import importing

    with importing:
        try:
            from vitnp.kernels.cpu.codegen import jit

            jit.cache_folder()
        except ImportError as error:
            _logger.warning("no compiled kernels, so this will be slower: %s", error)
            return reference
        from vitnp.kernels.cpu import dispatch

    return dispatch


def compile_ahead(n_threads: int = 2, precision: str = "fp32") -> None:
    """Compile kernels for the CPU in further processes, if they are compiled on this machine for the first time.

    They end by themselves, with this process at the latest.

    Parameters
    ----------
    n_threads : int
        Threads that this process may use.
    precision : str
        That of the network.
    """
    if n_threads > 1 and for_device("cpu") is not for_device("reference"):
        from vitnp.kernels.cpu.codegen.ahead import compile_ahead

        compile_ahead(n_threads, precision)


def describe() -> str:
    """Describe the CPU implementation as far as the last bits of results depend on it.

    Examples
    --------
    >>> describe().split()[0] in ("reference", "compiled")
    True
    """
    import numpy

    if for_device("cpu") is for_device("reference"):
        return f"reference (NumPy {numpy.__version__})"
    from vitnp.kernels.cpu.codegen.simd import LANES
    from vitnp.kernels.cpu.codegen.target import numba_version

    return f"compiled (numba {numba_version()}, {LANES} lanes)"

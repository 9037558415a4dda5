"""The numerical operations beneath vitnp: a ladder of siblings with one signature each.

``reference`` defines every operation in plain NumPy. It is the specification, the oracle of the tests and the fallback
everywhere. ``cpu`` holds the same operations compiled by numba, ``cuda`` those for CuPy. Whoever needs an operation asks
:func:`for_device` or :func:`for_array` and never learns which sibling answered. CuPy is imported when a GPU is asked for,
and by nothing else.
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from vitnp.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import cupy
    import numpy as np

# What users may ask for; arrays live on one of the last two.
DEVICES = ("auto", "cpu", "cuda")


# Whether notices (what is being compiled, what is missing) stay unsaid.
quiet = False


def say(sentence: str) -> None:
    """One line for the user, on standard error."""
    if not quiet:
        print(f"vitnp: {sentence}", file=sys.stderr, flush=True)


def choose_device(wish: str = "auto") -> str:
    """The device that is meant.

    Parameters
    ----------
    wish : {"auto", "cpu", "cuda"}
        "auto" is "cuda" where that works, else "cpu".

    Returns
    -------
    {"cpu", "cuda"}

    Raises
    ------
    DeviceError
        For "cuda" where it doesn't work: why, and what mends it.
    UsageError
        For any other word.

    Examples
    --------
    >>> choose_device("cpu")
    'cpu'
    """
    if wish not in DEVICES:
        raise UsageError(f"there is no device {wish!r}; choose among {', '.join(DEVICES)}")
    if wish == "cpu":
        return "cpu"
    from vitnp.kernels.cuda.device import check

    try:
        check()
    except DeviceError:
        if wish == "cuda":
            raise
        return "cpu"
    return "cuda"


def for_device(device: str = "cpu") -> ModuleType:
    """The module that holds the operations for a device.

    For the CPU that is the compiled one, unless numba is missing, compiled code can't be kept, or VITNP_KERNELS is "reference".

    Parameters
    ----------
    device : {"cpu", "cuda", "reference"}
        Where the arrays live; "reference" for the plain form whatever there is.

    Returns
    -------
    module
        Has the names of :mod:`vitnp.kernels.reference`; for "cuda" those that have a kernel.

    Raises
    ------
    UsageError
        For a device that has no kernels, or another value of VITNP_KERNELS.

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
    raise UsageError(f"there are no kernels for the device {device!r}; this version has: {', '.join(DEVICES[1:])}")


def device_of(x: object) -> str:
    """Where an array lives.

    Examples
    --------
    >>> device_of([1, 2])
    'cpu'
    """
    return "cuda" if type(x).__module__.partition(".")[0] == "cupy" else "cpu"


def for_array(x: object) -> ModuleType:
    """The operations for the device an array lives on; see :func:`for_device`."""
    return for_device(device_of(x))


def array_module(x: object) -> ModuleType:
    """The module with NumPy's functions for an array: NumPy itself, or CuPy.

    Examples
    --------
    >>> array_module([1, 2]).__name__
    'numpy'
    """
    import numpy

    return sys.modules["cupy"] if device_of(x) == "cuda" else numpy


def to_host(x: np.ndarray | cupy.ndarray) -> np.ndarray:
    """The array itself, or a copy in the host's memory of one that lives on a GPU."""
    return sys.modules["cupy"].asnumpy(x) if device_of(x) == "cuda" else x


def to_device(x: np.ndarray | cupy.ndarray, device: str) -> np.ndarray | cupy.ndarray:
    """The array itself if it lives on the device, else a copy there.

    Examples
    --------
    >>> to_device([1, 2], "cpu")
    [1, 2]
    """
    if device == "cpu":
        return to_host(x)
    from vitnp.kernels.cuda.loader import require_cupy

    return require_cupy().asarray(x)


def name_of(device: str) -> str:
    """A device by the name that tells it from others of its kind: "cpu", "cuda:0".

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
def _for_cpu(wish: str) -> ModuleType:
    from vitnp.kernels import reference

    if wish not in ("", "reference", "compiled"):
        raise UsageError(f"VITNP_KERNELS is {wish!r}; choose reference or compiled, or leave it unset")
    if wish == "reference":
        return reference
    try:
        from vitnp.kernels.cpu.codegen import jit

        jit.cache_folder()
    except ImportError as error:
        say(f"no compiled kernels, so this will be slower: {error}")
        return reference
    from vitnp.kernels.cpu import dispatch

    return dispatch


def describe() -> str:
    """What computes on the CPU, as far as the last bit of a result depends on it.

    Examples
    --------
    >>> describe().split()[0] in ("reference", "compiled")
    True
    """
    import numpy

    if for_device("cpu") is for_device("reference"):
        return f"reference (NumPy {numpy.__version__})"
    import numba
    from vitnp.kernels.cpu.codegen.simd import LANES

    return f"compiled (numba {numba.__version__}, {LANES} lanes)"

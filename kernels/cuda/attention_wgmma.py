"""Attention by warp groups on compute capability 9.0: ``attention_wgmma.cu`` in place of ``attention_half``.

It has been emulated and compiled, not run on a GPU. So a device gets it only after :mod:`.attention_trial` has compared
it there with the other form, in a process of its own; if anything is wrong, the other form computes everything.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import attention_trial, tensor_map
from vitnp.kernels.cuda.loader import Kernel, contiguous, kernel, require_cupy

from vitnp.errors import DeviceError

if TYPE_CHECKING:
    import cupy

_logger = logging.getLogger("vitnp")

CAPABILITY = "90"
_TARGET = "sm_90a"
# As in attention_wgmma.cu: numbers in a head; queries of a block and keys of a tile; tiles of keys, and of values, in
# shared memory; threads of a block.
SIZE, _ROWS, _STAGES, _THREADS = 64, 128, 4, 288
# One tile of queries, the others, 8 bytes for each barrier, and what the alignment to 1024 bytes may take.
_SHARED = (1 + 2 * _STAGES) * _ROWS * SIZE * 2 + 8 * (1 + 4 * _STAGES) + 1024

_lock = threading.Lock()
_reasons: dict[tuple[int, tuple[str, ...]], str] = {}  # by device and options: why it is not used; "" if it is
_local = threading.local()  # `off`, while a thread is inside `switched_off`


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Use the other form in this thread, as a context manager."""
    before = getattr(_local, "off", False)
    _local.off = True
    try:
        yield
    finally:
        _local.off = before


def why_not(*options: str) -> str:
    """Return why the current device does not compute attention by warp groups, or "" if it does.

    The first call for a device finds it out, which may take some seconds.

    Parameters
    ----------
    *options : str
        Compiler options of the kernel: ``-DBFLOAT16``, ``-DROTARY``.
    """
    device = require_cupy().cuda.Device()
    if getattr(_local, "off", False):
        return "it is switched off"
    if device.compute_capability != CAPABILITY:
        return f"it needs compute capability {CAPABILITY}, and the GPU has {device.compute_capability}"
    with _lock:
        key = device.id, options
        if key not in _reasons:
            try:
                _kernel(options)
                attention_trial.require(device.id, options)
                _reasons[key] = ""
            except Exception as error:  # whatever it is, there is another form
                _refuse(key, error)
        return _reasons[key]


def attend(
    query: cupy.ndarray,
    key: cupy.ndarray,
    value: cupy.ndarray,
    out: cupy.ndarray,
    scale: np.float32,
    rotation: cupy.ndarray | None,
    options: tuple[str, ...],
) -> bool:
    """Compute attention if this device can and the arrays fit; arguments as of the kernel.

    Returns
    -------
    bool
        False if nothing has been computed.
    """
    if why_not(*options) or not all(map(tensor_map.fits, (query, key, value))):
        return False
    try:
        launch(query, key, value, out, scale, rotation, options)
    except (DeviceError, OSError, RuntimeError) as error:
        with _lock:
            _refuse((require_cupy().cuda.Device().id, options), error)
        return False
    return True


def launch(
    query: cupy.ndarray,
    key: cupy.ndarray,
    value: cupy.ndarray,
    out: cupy.ndarray,
    scale: np.float32,
    rotation: cupy.ndarray | None,
    options: tuple[str, ...],
) -> None:
    """Launch the kernel, whether or not the device has been found to compute it rightly."""
    images, rows, width = query.shape
    maps = [tensor_map.encode(x, SIZE, _ROWS) for x in (query, key, value)]
    if rotation is not None:
        rotation = contiguous(rotation, np.float32)
    arguments = (*maps, out.view(np.uint16), np.int32(rows), np.int32(key.shape[1]), scale, rotation)
    _kernel(options)((-(-rows // _ROWS), width // SIZE, images), (_THREADS,), arguments, shared_mem=_SHARED)


def _kernel(options: tuple[str, ...]) -> Kernel:
    return kernel("attention_wgmma", "attention_wgmma", *options, shared=_SHARED, target=_TARGET)


def _refuse(key: tuple[int, tuple[str, ...]], error: Exception) -> None:
    """Use the other form from now on; say it once."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if not any(_reasons.values()):
        _logger.warning("attention by warp groups is not used on this GPU (%s); a slower kernel computes it", reason)
    _reasons[key] = reason

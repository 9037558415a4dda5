"""Whether attention by warp groups is right on a GPU: a small problem, computed by both forms and compared.

A kernel that has never run on some GPU may do worse than compute nonsense: it may never end, or spoil the process's
access to the GPU. So it is tried in a process of its own, once for each GPU, driver and version of the kernel:
``python -m vitnp.kernels.cuda.attention_trial DEVICE OPTIONS``.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
from vitnp.kernels.cuda import cubin, loader

if TYPE_CHECKING:
    import cupy

# More tiles than fit into shared memory, none of them whole at the end, and rows for both warp groups of two blocks.
IMAGES, QUERIES, KEYS, HEADS = 2, 150, 677, 2
_SECONDS = 120
# Relative and absolute difference of the two forms: both round probabilities and results.
_TOLERANCE = {np.float16: (2**-8, 2e-3), np.uint16: (2**-5, 1.6e-2)}


def require(device: int, options: tuple[str, ...]) -> None:
    """Try the kernel on a device, unless it has passed there before.

    Raises
    ------
    RuntimeError
        If the two forms differ, or one of them fails or does not end.
    OSError
        If no process can be started.
    """
    import cupy

    name = str(cupy.cuda.runtime.getDeviceProperties(device)["name"])
    code = loader.source("attention_wgmma.cu")
    record = cubin.cache_path(code, name, str(loader.driver_version()), *options, suffix=".passed")
    if record.exists():
        return
    if getattr(sys, "frozen", False) or not sys.executable:
        raise RuntimeError("there is no Python interpreter to try it with")
    command = [sys.executable, "-m", "vitnp.kernels.cuda.attention_trial", str(device), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"its trial did not end within {_SECONDS} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"its trial ended with status {done.returncode}")
    cubin.write(record, b"")


def compare(options: tuple[str, ...]) -> None:
    """Compute the problem by both forms on the current device.

    Raises
    ------
    RuntimeError
        If the results differ by more than rounding.
    """
    from vitnp.kernels.cuda import attention, attention_wgmma

    query, key, value, rotation = problem(options)
    found = loader.require_cupy().empty(query.shape, query.dtype)
    scale = np.float32(math.log2(math.e) / math.sqrt(attention_wgmma.SIZE))
    attention_wgmma.launch(query, key, value, found, scale, rotation, options)
    with attention_wgmma.switched_off():
        wanted = attention.attend_rotated(query, key, value, HEADS, rotation)
    relative, absolute = _TOLERANCE[query.dtype.type]
    found, wanted = (_floats(x.get()) for x in (found, wanted))
    worst = np.abs(found - wanted) - relative * np.abs(wanted)
    if not worst.max() <= absolute:  # also if there is a NaN
        raise RuntimeError(
            f"its results are wrong: they differ by up to {worst.max():.2g} from those of the other form"
        )


def problem(options: tuple[str, ...]) -> tuple[cupy.ndarray, ...]:
    """Return queries, keys and values in a fused product, and a rotation or None: random numbers, some large."""
    cupy = loader.require_cupy()
    from vitnp.kernels.cuda import attention_wgmma, bfloat16

    rng, width = np.random.default_rng(0), HEADS * attention_wgmma.SIZE
    fused = rng.standard_normal((IMAGES, KEYS, 3 * width)).astype(np.float32)
    fused[:, ::7, :width] *= 20  # queries with a steep softmax, whose maximum moves from tile to tile
    angles = rng.uniform(-3, 3, (QUERIES, attention_wgmma.SIZE // 2)).astype(np.float32)
    rotation = cupy.asarray(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)) if "-DROTARY" in options else None
    on_device = cupy.asarray(fused)
    on_device = bfloat16.shorten(on_device) if "-DBFLOAT16" in options else on_device.astype(np.float16)
    query, key, value = (on_device[:, :, i * width : (i + 1) * width] for i in range(3))
    return query[:, :QUERIES], key, value, rotation


def _floats(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x.astype(np.float32)


def main(arguments: list[str]) -> int:
    """Try the kernel on a device: arguments are its number and compiler options."""
    number, *options = arguments
    loader.require_cupy().cuda.Device(int(number)).use()
    compare(tuple(options))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

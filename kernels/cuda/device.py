"""The GPU as such: whether it works, how much of its memory is free, waiting for it."""

from __future__ import annotations

from vitnp.kernels.cuda.loader import kernel, require_cupy

from vitnp.errors import DeviceError


def check() -> None:
    """See that there is a GPU, and that kernels can be compiled for it.

    Raises
    ------
    DeviceError
        In one sentence what is missing, and what mends it.
    """
    # Every network needs this one, and it includes what others do: CUDA's headers, that is.
    kernel("gelu", "epilogue")


def wait() -> None:
    """Until all that was launched is done."""
    require_cupy().cuda.get_current_stream().synchronize()


def free_bytes() -> int:
    """Memory that new arrays may take: what the driver has left, and what CuPy holds in reserve."""
    cupy = require_cupy()
    free, _ = cupy.cuda.runtime.memGetInfo()
    return free + cupy.get_default_memory_pool().free_bytes()


def release() -> None:
    """Give the driver back what CuPy holds in reserve: pieces of the wrong size may be all that there is."""
    require_cupy().get_default_memory_pool().free_all_blocks()


def out_of_memory(what: str) -> DeviceError:
    """The error for `what` that the GPU's memory doesn't hold."""
    return DeviceError(
        f"the GPU's memory doesn't hold {what}; free some of it, choose a smaller --size or --max-tokens, or --device cpu"
    )

"""Compile the kernels of a photograph in further processes, while a command compiles those that it needs first.

numba compiles one kernel at a time in a process. On an empty cache the command begins with the first kernels that a
photograph needs, and the others with the last ones. Each claims a kernel before it compiles it, so none is compiled
twice; and a process that needs what another is compiling takes one that nobody has begun, before it waits.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from vitnp.kernels.cpu.codegen import jit
from vitnp.kernels.cpu.codegen.cache import SUFFIX
from vitnp.kernels.cpu.codegen.simd import HAS_BF16

# Modules, and their kernels that a photograph needs, in the order in which it needs them. In bfloat16 and int8 others
# take the place of some.
_FIRST = {
    "resize": ("_resize_rows", "_resize_columns"),
    "patch_embed": ("_gather",),
    "linear": ("_linear",),
    "layernorm": ("_layernorm",),
    "pack_kv": ("write",),
    "attention": ("_attend",),
    "blocks": ("run_blocks",),
}
_THEN = {
    "codegen.barrier": ("wait",),
    "kmeans_plusplus": ("_choose",),
    "kmeans_rows": ("_invert_norms",),
    "kmeans": ("assign_and_add",),
    "lloyd": ("plain_moves",),
    "color_bins": ("_number_colors",),
    "bilateral_grid": ("_number_vertices", "_connect", "_group", "_splat", "_slice"),
    "bilateral_solver": ("_solve",),
    "overlay": ("_paint",),
}
_OF_PRECISION: dict[str, dict[str, tuple[str, ...]]] = {
    "bf16": {"linear": ("_linear_bf16",)},
    "int8": {"int8": ("_quantize", "_layernorm_int8", "_linear_int8")},
}
if HAS_BF16:
    for _kernels in _OF_PRECISION.values():
        _kernels |= {"pack_kv": ("write_pairs",), "attention": ("_attend_bf16",)}

# In the place of a precision: all kernels.
_EVERYTHING = "all"

# More processes would wait for each other, and for the processor that the command needs as well.
MAX_PROCESSES = 4

# Folder that contains the package, in a checkout and where it is installed.
_ROOT = pathlib.Path(sys.modules["vitnp"].__file__ or "").resolve().parent.parent

# Kept, because Python warns of a process that runs on when nothing refers to it any more.
_started: list[subprocess.Popen] = []

_COMMAND = """
import gc, sys
gc.disable()
sys.path.insert(0, sys.argv[1])
from vitnp.kernels.cpu.codegen import ahead
ahead.compile_for(int(sys.argv[2]), sys.argv[3])
"""


def compile_ahead(n_threads: int, precision: str = "fp32") -> None:
    """Start other processes if no kernel has been compiled yet, and Python can be started.

    Parameters
    ----------
    n_threads : int
        Threads that the command may use; there are as many processes, the command's own included, up to MAX_PROCESSES.
    precision : str
    """
    folder = jit.cache_folder()
    if next(folder.glob(f"*{SUFFIX}"), None) is not None or not os.access(folder, os.W_OK):
        return
    # An application that contains Python would start itself.
    if getattr(sys, "frozen", False) or "python" not in os.path.basename(sys.executable or ""):
        return
    command = [sys.executable, "-c", _COMMAND, str(_ROOT), str(os.getpid()), precision]
    nothing = subprocess.DEVNULL
    with contextlib.suppress(OSError):  # of too many processes: then the command compiles everything itself
        for _ in range(min(n_threads, MAX_PROCESSES) - 1):
            _started.append(subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing))
    jit.while_waiting = functools.partial(_compile_another, precision)


def compile_for(parent: int, precision: str = "fp32") -> None:
    """Compile the kernels of a photograph that nobody else has begun for a parent process, as long as it lives."""
    for kernel in reversed(list(kernels(precision))):
        if os.getppid() != parent:
            return
        kernel.compile(if_free=True)


def compile_all(n_processes: int) -> None:
    """Compile all kernels, of which a photograph needs some, in several processes that share them."""
    command = [sys.executable, "-c", _COMMAND, str(_ROOT), str(os.getpid()), _EVERYTHING]
    helpers = [subprocess.Popen(command) for _ in range(min(n_processes, MAX_PROCESSES) - 1)]
    for kernel in kernels(_EVERYTHING):
        kernel.compile(if_free=True)
    for helper in helpers:
        helper.wait()


def kernels(precision: str = "fp32") -> Iterator[jit.Kernel]:
    """Import, and return one after the other, the kernels that a photograph needs."""
    if precision == _EVERYTHING:
        from vitnp.kernels.cpu import dispatch

        for module in dispatch.MODULES:
            importlib.import_module(f"vitnp.kernels.cpu.{module}")
        for module in ("bounded_lloyd", "codegen.barrier"):
            importlib.import_module(f"vitnp.kernels.cpu.{module}")
        yield from list(jit.KERNELS)
        return
    for module, names in (_FIRST | _OF_PRECISION.get(precision, {}) | _THEN).items():
        imported = importlib.import_module(f"vitnp.kernels.cpu.{module}")
        for name in names:
            yield getattr(imported, name)


def _compile_another(precision: str) -> bool:
    """Compile a kernel that nobody has begun; return False if there is none."""
    open_ones = (kernel for kernel in kernels(precision) if not kernel.is_cached())
    return any(kernel.compile(if_free=True) is not None for kernel in open_ones)

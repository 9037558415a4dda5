"""Compile kernels in a second process, while a command compiles those that it needs first.

numba compiles one kernel at a time in a process. On an empty cache the two processes begin at both ends of what a
photograph needs, and each loads what the other has compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys

from vitnp.kernels.cpu.codegen import jit
from vitnp.kernels.cpu.codegen.cache import SUFFIX

# Modules in the opposite order of that in which a photograph needs them.
_MODULES = (
    "overlay",
    "bilateral_solver",
    "bilateral_grid",
    "color_bins",
    "lloyd",
    "kmeans",
    "blocks",
    "activations",
    "attention",
    "pack_kv",
    "linear",
    "layernorm",
    "patch_embed",
)

# Folder that contains the package, in a checkout and where it is installed.
_ROOT = pathlib.Path(sys.modules["vitnp"].__file__ or "").resolve().parent.parent

# Kept, because Python warns of a process that runs on when nothing refers to it any more.
_started: list[subprocess.Popen] = []

_COMMAND = """
import sys
sys.path.insert(0, sys.argv[1])
from vitnp.kernels.cpu.codegen import ahead
ahead.compile_for(int(sys.argv[2]))
"""


def compile_ahead() -> None:
    """Start the second process if no kernel has been compiled yet, and Python can be started."""
    folder = jit.cache_folder()
    if next(folder.glob(f"*{SUFFIX}"), None) is not None or not os.access(folder, os.W_OK):
        return
    # An application that contains Python would start itself.
    if getattr(sys, "frozen", False) or "python" not in os.path.basename(sys.executable or ""):
        return
    command = [sys.executable, "-c", _COMMAND, str(_ROOT), str(os.getpid())]
    nothing = subprocess.DEVNULL
    with contextlib.suppress(OSError):  # of too many processes: then the command compiles everything itself
        _started.append(subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing))


def compile_for(parent: int) -> None:
    """Compile the kernels of a photograph for a parent process, as long as it lives."""
    for name in _MODULES:
        module = importlib.import_module(f"vitnp.kernels.cpu.{name}")
        for kernel in reversed([kernel for kernel in jit.KERNELS if kernel.__module__ == module.__name__]):
            if os.getppid() != parent:
                return
            kernel.compile()

"""What a machine lacks that the benchmark needs, in one sentence, before anything is begun."""

from __future__ import annotations

import importlib.util
import os

# Modules that vitnp itself imports somewhere on the way from a photograph to its mask.
MODULES = ("numpy", "scipy", "numba", "safetensors", "PIL", "tqdm", "threadpoolctl", "platformdirs", "pooch")


def find_trouble() -> str | None:
    """Say what is missing and what to do about it; None where nothing is.

    Returns
    -------
    str or None
    """
    problems, remedies = [], []
    absent = [name for name in MODULES if not _is_there(name)]
    if absent:
        names = " and ".join(filter(None, (", ".join(absent[:-1]), absent[-1])))
        problems.append(f"{names} {'is' if len(absent) == 1 else 'are'} not installed")
        remedies.append(
            f"install {'it' if len(absent) == 1 else 'them'} (without network from wheels: bench/gpu/RUN.md)"
        )
    if "numpy" not in absent:
        from vitnp.kernels.cuda import loader

        trouble = loader.find_trouble()
        if trouble:
            problem, _, remedy = trouble.rpartition("; ")
            problems.append(problem)
            # On the CPU there is nothing to measure here.
            remedies.append("run this on a machine with an NVIDIA GPU" if "--device cpu" in remedy else remedy)
    return f"{', and '.join(problems)}; {', and '.join(remedies)}" if problems else None


def why_not_compiled() -> str | None:
    """Say why the CPU would compute with the plain NumPy kernels, which are no baseline; None where it doesn't."""
    from vitnp import kernels

    if kernels.for_device("cpu") is not kernels.for_device("reference"):
        return None
    if os.environ.get("VITNP_KERNELS") == "reference":
        return "VITNP_KERNELS is reference; unset it"
    try:
        from vitnp.kernels.cpu.codegen import jit

        jit.cache_folder()
    except ImportError as error:
        return f"{error}; install what is missing, or set VITNP_CACHE to a folder that can be written"
    return "nobody knows why; see what the log says"


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False

"""Describe the device, driver and libraries."""

from __future__ import annotations

import shutil
import subprocess
from types import ModuleType

from vitnp.kernels.cuda.loader import driver_version

from bench import record
from bench.cpu.comparison import versions
from vitnp import __version__

PACKAGES = ("cupy-cuda12x", "cupy-cuda13x", "numba", "torch", "triton", "cuml-cu12", "cuml-cu13", "flash-kmeans")


def facts(cupy: ModuleType) -> dict[str, object]:
    """Describe the machine for the result file, without allocating memory on the device."""
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    name = properties["name"]
    known = driver_version() or 0
    device = {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "l2_mib": round(properties["l2CacheSize"] / 2**20, 1),
        "driver": _query_nvidia_smi("driver_version") or f"for CUDA {known // 1000}.{known % 1000 // 10}",
        "clocks": _query_nvidia_smi("clocks.max.sm,clocks.max.mem,power.limit"),
        "cuda": "{}.{}".format(*divmod(cupy.cuda.runtime.runtimeGetVersion() // 10, 100)),
        "cupy": cupy.__version__,
    }
    return {"vitnp": __version__, "device": device, "host": record.machine(), "versions": versions(PACKAGES)}


def _query_nvidia_smi(query: str) -> str | None:
    """Query nvidia-smi for the first device; return None if it is not available."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None

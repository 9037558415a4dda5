"""Which device, driver and libraries the figures belong to."""

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
    """The machine, for the result file; asks the driver alone, so that this process takes no memory of the device."""
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    name = properties["name"]
    known = driver_version() or 0
    device = {
        "name": name.decode() if isinstance(name, bytes) else str(name),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
        "l2_mib": round(properties["l2CacheSize"] / 2**20, 1),
        "driver": _asked("driver_version") or f"for CUDA {known // 1000}.{known % 1000 // 10}",
        "clocks": _asked("clocks.max.sm,clocks.max.mem,power.limit"),
        "cuda": "{}.{}".format(*divmod(cupy.cuda.runtime.runtimeGetVersion() // 10, 100)),
        "cupy": cupy.__version__,
    }
    return {"vitnp": __version__, "device": device, "host": record.machine(), "versions": versions(PACKAGES)}


def _asked(query: str) -> str | None:
    """What nvidia-smi says of the first device; None where it isn't there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None

"""Refuse networks that are larger than the memory of the machine, before they fill it."""

from __future__ import annotations

import contextlib
import os
import pathlib

from vitnp.errors import CheckpointError

_CGROUP_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # that of a container


def machine_memory() -> int | None:
    """Return how many bytes of memory this machine has, or the container that this process runs in; None if unknown."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # no container, or "max"
        limits.append(int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return min((limit for limit in limits if limit > 0), default=None)


def require_memory(n_parameters: int) -> None:
    """Check that the weights of a network, as float32, fit into memory.

    Raises
    ------
    CheckpointError
        If they don't; the message says how much they take.
    """
    needed, present = 4 * n_parameters, machine_memory()
    if present is not None and needed > present:
        raise CheckpointError(
            f"its {n_parameters / 1e9:.1f} billion parameters take {needed / 1e9:.1f} GB of memory as float32, but "
            f"this machine has {present / 1e9:.1f} GB: take a smaller network, or a machine with more memory"
        )

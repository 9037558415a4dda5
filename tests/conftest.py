"""Shared fixtures (test data, two networks, an emulated and a real CuPy), and how tests run in several processes."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import warnings

import pytest


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder with photographs, masks and weights that can't be part of the checkout; it stands beside it."""
    folder = pathlib.Path(__file__).resolve().parent.parent.parent / "shared"
    if not folder.is_dir():
        if os.environ.get("VITNP_REQUIRE_DATA") == "1":
            pytest.fail(f"VITNP_REQUIRE_DATA=1, but there is no folder {folder}")
        pytest.skip("the test data beside the checkout is absent")
    return folder


@pytest.fixture(scope="session")
def vit_tiny(shared: pathlib.Path):
    """A trained ViT-Ti/16 (supervised)."""
    from vitnp.checkpoints.load import load_vit

    return load_vit(shared / "weights" / "vit_tiny_patch16_224_augreg.safetensors")


@pytest.fixture(scope="session")
def builtin():
    """The built-in checkpoint."""
    from vitnp.checkpoints.load import load_vit

    return load_vit("auto")


@pytest.fixture(scope="session")
def photograph() -> pathlib.Path:
    """The photograph that the checkout carries."""
    return pathlib.Path(__file__).parent / "photographs" / "coffee.jpg"


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request):
    """CuPy: one made of NumPy, whose kernels run on the CPU; under ``pytest -m gpu`` the real one.

    The emulator checks every access, unless a module says ``EMULATOR = "fast"``.
    """
    if request.param == "emulated":
        import fake_cupy

        with fake_cupy.installed(getattr(request.module, "EMULATOR", "check")) as fake:
            yield fake
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import's are not ours to mend
        from vitnp.kernels.cuda import loader

        trouble = loader.find_trouble()
    if trouble:
        pytest.skip(trouble)
    yield loader.require_cupy()


# --- several processes (pytest-xdist) ---------------------------------------------------------------------------------


def pytest_configure(config) -> None:
    """Restore SIGINT: a shell's background job ignores it, and so would the commands that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config) -> int | None:
    """Return the number of processes for ``-n auto``: one per core that this process may use.

    The tests run in pytest's own process if it was started by a test, or for a GPU, which processes shouldn't share.
    """
    if os.environ.get("PYTEST_XDIST_WORKER") or config.option.markexpr in ("gpu", "train", "parity"):
        return 0
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # xdist reads it itself
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config, specs) -> None:
    """Compile the CPU kernels before the workers start, so that not every worker compiles all of them.

    Single test files need few of them, and compile these themselves.
    """
    if any(".py" in argument for argument in config.args):
        return
    try:
        from vitnp.kernels.cpu import dispatch
        from vitnp.kernels.cpu.codegen.jit import cache_folder

        done = cache_folder() / "compiled-by-the-tests"
    except ImportError:
        return  # no numba or no cache: the reference takes over
    if done.exists():
        return

    def compile_module(name: str) -> None:
        module = f"vitnp.kernels.cpu.{name}"
        code = f"""
import {module}
from vitnp.kernels.cpu.codegen.jit import KERNELS

for kernel in KERNELS:
    if kernel.__module__ == {module!r}:
        kernel.compile()
"""
        subprocess.run([sys.executable, "-c", code], cwd=config.rootpath, capture_output=True, check=True)

    # The one that takes longest begins first.
    with concurrent.futures.ThreadPoolExecutor(len(specs)) as pool:
        list(pool.map(compile_module, ["bounded_lloyd", "codegen.barrier", *dispatch.MODULES]))
    done.touch()


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what was fuzzed."""
    reports = (report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, []))
    for report in reports:
        for name, value in getattr(report, "user_properties", []):
            if name == "fuzz":
                terminalreporter.write_line(value)


def pytest_collection_modifyitems(items) -> None:
    """Mark the tests of lanes of their own as slow too, and run slow tests first, so that none of them ends the run."""
    for item in items:
        if any(map(item.get_closest_marker, ("gpu", "train", "parity", "fuzz", "clients", "browser"))):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)

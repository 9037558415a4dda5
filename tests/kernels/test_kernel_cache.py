"""Compiled kernels on disk: whatever is wrong with a file, the function is compiled anew and gives the right answer."""

from __future__ import annotations

import logging
import os
import pathlib
import pickle
import platform
import subprocess
import sys

import pytest

from vitnp import kernels

pytestmark = pytest.mark.skipif(
    not kernels.describe().startswith("compiled"), reason="there are no compiled kernels here"
)
on_posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no owners and modes")
as_root = pytest.mark.skipif(getattr(os, "geteuid", lambda: -1)() != 0, reason="only root can give files away")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder, which kernels compiled by the test use."""
    from vitnp.kernels.cpu.codegen import cache, jit

    folder = tmp_path / "kernels"
    cache.open_folder(folder)
    monkeypatch.setattr(jit, "cache_folder", lambda: folder)
    monkeypatch.setattr(cache, "_said", set())
    return folder


def compile_add():
    """Compile a kernel, or load it: return it and whether it was loaded."""
    from numba import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64, types.int64)
    def add(a, b):
        return a + b

    return add, bool(add.compile()._cache_hits)


def only_file(folder) -> pathlib.Path:
    (path,) = folder.iterdir()
    return path


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def cut_by_one(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_pickle(path):
    path.write_bytes(pickle.dumps(("0.61.2", {})))


def replace_by_a_sound_file_of_another_version(path):
    from vitnp.kernels.cpu.codegen.cache import write_verified

    write_verified(path, pickle.dumps((1, 2, 3)))


def replace_by_another_kernel(path):
    from numba import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64, types.int64)
    def subtract(a, b):
        return a - b

    subtract.compile()
    (other,) = set(path.parent.iterdir()) - {path}
    os.replace(other, path)


def test_a_kernel_is_compiled_at_its_first_call(folder):
    from numba import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64)
    def double(a):
        return 2 * a

    assert not list(folder.iterdir())
    assert double(4) == 8 and only_file(folder)


@pytest.mark.parametrize("shared", [True, False])
def test_kernels_call_each_other_where_they_are_shared(folder, shared):
    from numba import TypingError, types
    from vitnp.kernels.cpu.codegen.jit import kernel

    def calling():
        @kernel(types.int64, shared=shared)
        def double(a):
            return 2 * a

        @kernel(types.int64)
        def quadruple(a):
            return double(double(a))

        return double, quadruple

    for times in (1, 2, 3):  # compiled, compiled from a cached one, and loaded
        double, quadruple = calling()
        assert double(5) == 10
        if not shared:
            with pytest.raises(TypingError, match="double"):
                quadruple(5)
            continue
        assert quadruple(5) == 20
        if times == 1:
            next(path for path in folder.iterdir() if "quadruple" in path.name).unlink()


def test_a_kernel_is_loaded_the_second_time(folder):
    first, was_loaded = compile_add()
    assert first(2, 3) == 5 and not was_loaded
    second, was_loaded = compile_add()
    assert second(2, 3) == 5 and was_loaded
    assert only_file(folder).stat().st_mode & 0o777 == 0o644 or os.name == "nt"


@pytest.mark.parametrize(
    "damage",
    [
        empty, cut, cut_by_one, flip_a_bit, replace_by_pickle, replace_by_a_sound_file_of_another_version,
        replace_by_another_kernel,
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_anew(folder, damage, caplog):
    compile_add()
    damage(only_file(folder))
    with caplog.at_level(logging.INFO):
        add, was_loaded = compile_add()
    assert add(2, 3) == 5 and not was_loaded
    assert f"compiled kernels in {folder} are damaged" in caplog.messages
    assert compile_add()[1]  # it is sound again


@on_posix
@pytest.mark.parametrize("plant", [os.mkfifo if hasattr(os, "mkfifo") else None, os.mkdir])
def test_what_is_no_file_is_not_read(folder, plant):
    compile_add()
    path = only_file(folder)
    path.unlink()
    plant(path)
    add, was_loaded = compile_add()
    assert add(2, 3) == 5 and not was_loaded


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.path,)


def give_to_nobody(path):
    os.chown(path, 65534, 65534)


@on_posix
@pytest.mark.parametrize(
    "distrust, reason",
    [
        (lambda path: path.chmod(0o666), "others may write"),
        (lambda path: path.chmod(0o664), "others may write"),
        pytest.param(give_to_nobody, "belongs to another user", marks=as_root),
    ],
)
def test_a_file_that_others_may_have_written_is_not_unpickled(folder, tmp_path, distrust, reason, caplog):
    from vitnp.kernels.cpu.codegen.cache import write_verified

    compile_add()
    path = only_file(folder)
    write_verified(path, pickle.dumps(Trap(tmp_path / "sprung")))
    distrust(path)
    add, was_loaded = compile_add()
    compile_add()
    assert add(2, 3) == 5 and not was_loaded and not (tmp_path / "sprung").exists()
    assert len([line for line in caplog.messages if reason in line and str(path) in line]) == 1  # said once
    write_verified(path, pickle.dumps(Trap(tmp_path / "sprung")))
    compile_add()
    assert (tmp_path / "sprung").exists()  # the trap works


@on_posix
def test_a_link_is_not_followed(folder, tmp_path):
    compile_add()
    path = only_file(folder)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not compile_add()[1]


@on_posix
@pytest.mark.parametrize(
    "distrust, reason",
    [
        (lambda path: path.chmod(0o777), "others may write"),
        (lambda path: path.chmod(0o775), "others may write"),
        pytest.param(give_to_nobody, "belongs to another user", marks=as_root),
    ],
)
def test_a_folder_that_others_may_write_is_refused(folder, distrust, reason):
    from vitnp.kernels.cpu.codegen import cache

    distrust(folder)
    with pytest.raises(cache.Distrusted, match=reason):
        cache.open_folder(folder)


@on_posix
def test_a_umask_makes_no_file_that_is_refused_later(tmp_path):
    from vitnp.kernels.cpu.codegen import cache

    before = os.umask(0)
    try:
        cache.open_folder(tmp_path / "kernels")
        cache.write_verified(tmp_path / "kernels" / "a.nbc", b"code")
    finally:
        os.umask(before)
    cache.open_folder(tmp_path / "kernels")
    assert cache.read_verified(tmp_path / "kernels" / "a.nbc") == b"code"


def test_a_full_disk_is_said_once_and_stops_nothing(folder, monkeypatch, caplog):
    from vitnp.kernels.cpu.codegen import cache

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.tempfile, "mkstemp", fail)
    for _ in range(2):
        add, was_loaded = compile_add()
        assert add(2, 3) == 5 and not was_loaded
    assert len([line for line in caplog.messages if "cannot be kept" in line and "No space left" in line]) == 1
    assert not list(folder.iterdir())


def test_a_disk_that_fills_up_while_writing_leaves_nothing(folder, monkeypatch):
    from vitnp.kernels.cpu.codegen import cache

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", fail)
    assert compile_add()[0](2, 3) == 5
    assert not list(folder.iterdir())


@pytest.mark.parametrize("writable", [False, True])
def test_a_read_only_folder_is_used_if_it_is_warm(folder, monkeypatch, writable):
    from vitnp.kernels.cpu.codegen import cache

    monkeypatch.setattr(cache.os, "access", lambda path, mode: writable)
    if not writable:
        with pytest.raises(PermissionError, match="read-only and empty"):
            cache.open_folder(folder)
    compile_add()
    cache.open_folder(folder)
    assert compile_add()[1]


def test_unfinished_files_of_killed_processes_are_removed(folder):
    from vitnp.kernels.cpu.codegen import cache

    for name, age in {"old": 100, "new": 1}.items():
        path = folder / f".vitnp-{name}.part"
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    cache.open_folder(folder)
    assert only_file(folder).name == ".vitnp-new.part"


# --- in processes of their own ----------------------------------------------------------------------------------------

ADD = """
import sys, pathlib
from numba import types
from vitnp.kernels.cpu.codegen import cache, jit
folder = pathlib.Path(sys.argv[1])
cache.open_folder(folder)
jit.cache_folder = lambda: folder
def one(a, b):
    return a + 1.5 * b
def two(a, b):
    return a - 1.5 * b
for function, right in ((one, 4.0), (two, -2.0)):
    compiled = jit.kernel(types.float64, types.float64)(function).compile()
    assert compiled(1.0, 2.0) == right
    print(bool(compiled._cache_hits))
"""


@pytest.mark.slow(reason="starts processes")
def test_processes_that_write_the_same_files_at_the_same_time(tmp_path):
    folder = tmp_path / "kernels"

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", ADD, str(folder)], stdout=subprocess.PIPE, text=True)

    running = [start() for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    for process in running:
        process.stdout.close()
    assert sorted(path.suffix for path in folder.iterdir()) == [".nbc", ".nbc"]
    last = start()
    assert last.communicate()[0].split() == ["True", "True"] and last.returncode == 0


# What the code of a kernel depends on: the target of numba, not what the machine could do.
TARGET = """
import numpy as np
from vitnp import kernels
from vitnp.kernels import reference
from vitnp.kernels.cpu.codegen import simd
k, random = kernels.for_device(), np.random.default_rng(0)
x, w, b = (random.standard_normal(s).astype("f") for s in ((37, 75), (61, 75), 61))
np.testing.assert_allclose(k.linear(x, w, b), reference.linear(x, w, b), atol=3e-5, rtol=1e-5)
centers = x[:3].copy()
for dtype in ("e", "f", "d"):
    labels = k.kmeans_assign(x.astype(dtype), centers)
    np.testing.assert_array_equal(labels[0], reference.kmeans_assign(x.astype(dtype), centers)[0])
print(kernels.describe(), "avx512f" in simd.FEATURES)
"""


@pytest.mark.slow(reason="compiles the kernels for other processors")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are names of x86 processors")
@pytest.mark.parametrize(
    "environment, lanes",
    [
        ({"NUMBA_CPU_NAME": "generic"}, 4),
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}, 8),
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+avx512f"}, 16),
        ({"NUMBA_ENABLE_AVX": "0"}, 4),
    ],
)
def test_kernels_are_for_the_processor_that_numba_compiles_for(environment, lanes, tmp_path):
    from vitnp.kernels.cpu.codegen import simd

    if lanes > simd.LANES:
        pytest.skip("this processor lacks the instructions")
    settled = {key: value for key, value in os.environ.items() if key != "VITNP_LANES"}
    done = subprocess.run(
        [sys.executable, "-c", TARGET], capture_output=True, text=True,
        env={**settled, **environment, "VITNP_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{lanes} lanes" in done.stdout


@pytest.fixture
def started(folder, monkeypatch):
    """Commands of processes that would be started."""
    from vitnp.kernels.cpu.codegen import ahead

    commands: list[list[str]] = []
    monkeypatch.setattr(ahead, "_started", [])
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda command, **options: commands.append(command))
    return commands


def test_a_second_process_compiles_on_an_empty_cache_alone(started, folder):
    kernels.compile_ahead()
    assert [command[0] for command in started] == [sys.executable]
    compile_add()
    kernels.compile_ahead()
    assert len(started) == 1


def test_no_second_process_where_python_cannot_be_started(started, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/photos/photos")
    kernels.compile_ahead()
    monkeypatch.setattr(sys, "executable", "")
    kernels.compile_ahead()
    assert not started


def test_the_second_process_ends_with_the_first(folder, monkeypatch):
    from vitnp.kernels.cpu.codegen import ahead, jit

    def fail(kernel: jit.Kernel) -> None:
        raise AssertionError(f"{kernel} is compiled for nobody")

    monkeypatch.setattr(jit.Kernel, "compile", fail)
    ahead.compile_for(parent=-1)


@pytest.mark.slow(reason="imports everything in a new process")
def test_kernels_that_are_compiled_ahead_are_those_of_a_photograph():
    """No operation that a photograph needs is left to the first process alone."""
    code = """
import numpy as np, vitnp
from vitnp.kernels.cpu.codegen import ahead, jit
vitnp.segment_image(np.zeros((40, 50, 3), np.uint8)).mask
called = {kernel.__module__.rpartition(".")[2] for kernel in jit.KERNELS if kernel._compiled is not None}
print(*(called - set(ahead._MODULES)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) <= {"barrier"}

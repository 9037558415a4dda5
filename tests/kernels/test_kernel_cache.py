"""Compiled kernels on disk: whatever is wrong with a file, the function is compiled anew and gives the right answer."""

from __future__ import annotations

import dataclasses
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
    from vitnp.kernels.cpu.codegen import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64, types.int64)
    def add(a, b):
        return a + b

    add.compile()
    return add, add.was_cached


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


def replace_by_a_pickle(path):
    path.write_bytes(pickle.dumps(("0.61.2", {})))


def replace_by_a_sound_file_of_another_version(path):
    from vitnp.kernels.cpu.codegen.cache import write_verified

    write_verified(path, b'{"result": "int64"}\nmachine code')


def replace_by_another_kernel(path):
    from vitnp.kernels.cpu.codegen import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64, types.int64)
    def subtract(a, b):
        return a - b

    subtract.compile()
    (other,) = set(path.parent.iterdir()) - {path}
    os.replace(other, path)


def test_a_kernel_is_compiled_at_its_first_call(folder):
    from vitnp.kernels.cpu.codegen import types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64)
    def double(a):
        return 2 * a

    assert not list(folder.iterdir())
    assert double(4) == 8 and only_file(folder)


@pytest.mark.parametrize("shared", [True, False])
def test_kernels_call_each_other_where_they_are_shared(folder, shared):
    from numba import TypingError
    from vitnp.kernels.cpu.codegen import types
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
        empty, cut, cut_by_one, flip_a_bit, replace_by_a_pickle, replace_by_a_sound_file_of_another_version,
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


def plant_other_code(path):
    """Write code of the same name that subtracts, as whoever can write the file could."""
    from vitnp.kernels.cpu.codegen import jit, types
    from vitnp.kernels.cpu.codegen.cache import read_verified, write_verified

    def add(a, b):
        return a - b

    other = jit.Kernel(add, (types.int64, types.int64), jit.OPTIONS, shared=False)
    other.symbol = path.name.removesuffix(".nbc")
    path.unlink()
    other.compile()
    write_verified(path, read_verified(path))


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
def test_a_file_that_others_may_have_written_is_not_run(folder, distrust, reason, caplog):
    compile_add()
    path = only_file(folder)
    plant_other_code(path)
    distrust(path)
    add, was_loaded = compile_add()
    assert add(2, 3) == 5 and not was_loaded
    distrust(path)
    compile_add()
    assert len([line for line in caplog.messages if reason in line and str(path) in line]) == 1  # said once
    plant_other_code(path)
    assert compile_add()[0](2, 3) == -1  # it is the code that would have run


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
from vitnp.kernels.cpu.codegen import cache, jit, types
folder = pathlib.Path(sys.argv[1])
cache.open_folder(folder)
jit.cache_folder = lambda: folder
def one(a, b):
    return a + 1.5 * b
def two(a, b):
    return a - 1.5 * b
for function, right in ((one, 4.0), (two, -2.0)):
    compiled = jit.kernel(types.float64, types.float64)(function)
    assert compiled(1.0, 2.0) == right
    print(compiled.was_cached)
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


def quadruple_and_double():
    """Return a kernel that calls another, and that one, as in a process that begins."""
    from vitnp.kernels.cpu.codegen import jit, types
    from vitnp.kernels.cpu.codegen.jit import kernel

    jit.KERNELS.clear()

    @kernel(types.int64, shared=True)
    def double(a):
        return 2 * a

    @kernel(types.int64)
    def quadruple(a):
        return double(double(a))

    return quadruple, double


@pytest.mark.parametrize("damage", [empty, flip_a_bit, pathlib.Path.unlink, replace_by_a_pickle])
def test_a_damaged_file_of_a_kernel_that_another_calls_is_made_anew(folder, monkeypatch, damage):
    from vitnp.kernels.cpu.codegen import jit

    monkeypatch.setattr(jit, "KERNELS", [])
    quadruple_and_double()[0](1)
    (path,) = (path for path in folder.iterdir() if ".double-" in path.name.replace("quadruple_and_", "."))
    damage(path)
    quadruple, double = quadruple_and_double()
    assert quadruple(3) == 12 and quadruple.was_cached and not double.was_cached
    quadruple, double = quadruple_and_double()
    assert quadruple(3) == 12 and double(3) == 6 and double.was_cached


def test_machine_code_that_needs_an_unknown_symbol_is_made_anew(folder):
    from vitnp.kernels.cpu.codegen.cache import read_kernel, write_kernel

    compile_add()
    path = only_file(folder)
    known = read_kernel(path)
    write_kernel(path, dataclasses.replace(known, externals=(*known.externals, "no_such_function")))
    add, was_loaded = compile_add()
    assert add(2, 3) == 5 and not was_loaded
    write_kernel(path, dataclasses.replace(known, kernels=("no.such.kernel",)))
    assert compile_add()[0](2, 3) == 5


def test_machine_code_runs_without_numba(folder):
    code = """
import sys, pathlib
from vitnp.kernels.cpu.codegen import jit, types
jit.cache_folder = lambda: pathlib.Path(sys.argv[1])
def add(a, b):
    return a + b
assert jit.kernel(types.int64, types.int64)(add)(2, 3) == 5
print("numba" in sys.modules)
"""
    found = [
        subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found == ["True\n", "False\n"]


def test_where_numba_must_not_compile_the_reference_computes():
    code = "from vitnp import kernels; print(kernels.describe())"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )  # fmt: skip
    assert found.stdout.startswith("reference")


def test_arguments_of_other_types_are_refused(folder):
    import numpy as np
    from vitnp.kernels.cpu.codegen import types
    from vitnp.kernels.cpu.codegen.jit import IN, array_out, kernel

    @kernel(IN(1), array_out(2), types.float32)
    def scale(x, out, factor):
        for i in range(len(x)):
            out[0, i] = x[i] * factor

    x, out = np.arange(6, dtype=np.float32), np.zeros((1, 3), np.float32)
    scale(x[::2], out, 2)
    np.testing.assert_array_equal(out, [[0, 4, 8]])
    readonly = out.copy()
    readonly.flags.writeable = False
    unaligned = np.zeros(13, np.uint8)[1:].view(np.float32)
    unaligned[:] = [3, 4, 5]
    scale(unaligned, out, 2)  # reads a copy
    np.testing.assert_array_equal(out, [[6, 8, 10]])
    for arguments in (
        (x[::2], out), (x.astype(float), out, 2), (x.astype(">f4"), out, 2), (x, out[0], 2), (list(x), out, 2),
        (x[::2], readonly, 2), (x[::2], np.zeros((3, 1), np.float32).T[:, ::1], "two"), (x[::2], unaligned[None], 2),
        (x[::2], np.zeros((2, 6), np.float32)[:, ::2], 2), (None, out, 2),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            scale(*arguments)


def test_a_claim_is_waited_for_and_ends_with_its_process(folder):
    from vitnp.kernels.cpu.codegen import cache, types
    from vitnp.kernels.cpu.codegen.jit import kernel

    @kernel(types.int64)
    def triple(a):
        return 3 * a

    code = """
import pathlib, sys, time
from vitnp.kernels.cpu.codegen import cache
with cache.claim(pathlib.Path(sys.argv[1])) as claimed:
    print(claimed, flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code, str(triple.path)], stdout=subprocess.PIPE, text=True)
    if other.stdout.readline() != "True\n" or os.name == "nt":
        pytest.skip("there are no claims here")
    with cache.claim(triple.path) as claimed:
        assert not claimed
    assert triple.compile(if_free=True) is None
    other.kill()
    other.communicate()
    assert triple(2) == 6 and only_file(folder) == triple.path


@pytest.fixture
def started(folder, monkeypatch):
    """Commands of processes that would be started."""
    from vitnp.kernels.cpu.codegen import ahead

    commands: list[list[str]] = []
    monkeypatch.setattr(ahead, "_started", [])
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda command, **options: commands.append(command))
    return commands


def test_a_second_process_compiles_on_an_empty_cache_alone(started, folder):
    kernels.compile_ahead(n_threads=1)
    assert not started
    kernels.compile_ahead(n_threads=2)
    assert [command[0] for command in started] == [sys.executable]
    compile_add()
    kernels.compile_ahead(n_threads=2)
    assert len(started) == 1


def test_no_second_process_where_python_cannot_be_started(started, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/opt/photos/photos")
    kernels.compile_ahead()
    monkeypatch.setattr(sys, "executable", "")
    kernels.compile_ahead()
    assert not started


def test_the_second_process_ends_with_the_first(folder, monkeypatch):
    from vitnp.kernels.cpu.codegen import ahead, jit

    def fail(kernel: jit.Kernel, **options: object) -> None:
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
called = {kernel.symbol for kernel in jit.KERNELS if kernel._loaded is not None}
for kernel in jit.KERNELS:
    kernel._loaded = None
for kernel in ahead.kernels():
    kernel.compile()
print(*(called - {kernel.symbol for kernel in jit.KERNELS if kernel._loaded is not None}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not found.stdout.split()

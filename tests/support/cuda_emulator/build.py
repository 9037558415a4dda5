"""Compile translated kernels to shared libraries, cached under a hash of everything that determines their content."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

from .translate import INCLUDE, Translation

RUNTIME = pathlib.Path(__file__).parent / "runtime"
COMPILER = ["g++", "-std=gnu++17", "-fPIC", "-w", "-march=native", f"-I{INCLUDE}"]
# -g1: line tables, so that a fault can be named by its source line. tsan's own entry and exit calls are of no use here.
# -Og in check mode: it compiles a third faster than -O1 and runs little slower; with -O0 some stores would not be
# checked. -fno-tree-sra keeps a float4 a single access of 16 bytes, so that its alignment is checked.
KERNEL_FLAGS = {
    "fast": ["-O1", "-g1", "-fno-threadsafe-statics"],
    "check": [
        "-Og",
        "-g1",
        "-fno-threadsafe-statics",
        "-fno-tree-sra",
        "-fsanitize=thread",
        "--param",
        "tsan-instrument-func-entry-exit=0",
    ],
}
RUNTIME_FLAGS = {"fast": ["-O2"], "check": ["-O2", "-DEMU_CHECK"]}


class BuildError(RuntimeError):
    """A kernel cannot be compiled by g++."""


@functools.cache
def cache_folder() -> pathlib.Path:
    """Return the folder of libraries, in VITNP_CACHE if it is set, else in the platform's cache folder."""
    chosen = os.environ.get("VITNP_CACHE")
    if not chosen:
        import platformdirs

        chosen = platformdirs.user_cache_dir("vitnp")
    folder = pathlib.Path(chosen).expanduser().absolute() / "cuda_emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="cuda_emulator"))
    return folder


def build(translation: Translation, name: str, mode: str) -> pathlib.Path:
    """Return the path of the library of a translated file, compiled if necessary.

    Raises
    ------
    BuildError
        With g++'s own words.
    """
    library = (
        cache_folder()
        / f"{pathlib.Path(name).stem}-{mode}-{_key(translation.text, mode, *KERNEL_FLAGS[mode], _fingerprint())}.so"
    )
    with _missing(library) as missing:
        if missing:
            _build(translation, name, mode, library)
    return library


def _build(translation: Translation, name: str, mode: str, library: pathlib.Path) -> None:
    """Compile and link a translated file."""
    runtime = [
        _object(path, path.read_text(), RUNTIME_FLAGS[mode] + [f"-I{RUNTIME}"], mode)
        for path in sorted(RUNTIME.glob("*.cpp"))
    ]
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        source = pathlib.Path(folder) / name  # g++ sometimes names this file for code that came from the .cu
        source.write_text(translation.text)
        # Linked apart: with -fsanitize=thread the linker would bring in the runtime that ours stands in for.
        _run([*COMPILER, *KERNEL_FLAGS[mode], "-x", "c++", "-c", str(source), "-o", f"{folder}/kernel.o"], name, folder)
        _run(
            ["g++", "-shared", "-Wl,-Bsymbolic", f"{folder}/kernel.o", *map(str, runtime), "-o", f"{folder}/kernel.so"],
            name,
            folder,
        )
        os.replace(f"{folder}/kernel.so", library)


def _object(path: pathlib.Path, text: str, flags: list[str], mode: str) -> pathlib.Path:
    """Compile a part of the runtime, once per mode."""
    target = cache_folder() / f"runtime-{path.stem}-{mode}-{_key(text, mode, *flags, _fingerprint())}.o"
    with _missing(target) as missing:
        if missing:
            with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
                _run([*COMPILER, *flags, "-c", str(path), "-o", f"{folder}/part.o"], path.name, folder)
                os.replace(f"{folder}/part.o", target)
    return target


@contextlib.contextmanager
def _missing(path: pathlib.Path) -> Iterator[bool]:
    """Yield whether a file has to be compiled, under a lock: other processes wait instead of doing the same work."""
    if path.exists():
        yield False
        return
    lock = path.with_suffix(".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield not path.exists()
        finally:
            lock.unlink(missing_ok=True)


def _run(command: list[str], name: str, folder: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": folder})
    if done.returncode:
        raise BuildError(f"{name}: g++ says\n{done.stderr.strip()[-4000:]}")


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


@functools.cache
def _fingerprint() -> str:
    """Return a hash of the headers, the runtime, the compiler and its options, and the processor."""
    files = sorted([*INCLUDE.rglob("*.h"), *RUNTIME.iterdir(), pathlib.Path(__file__)])
    version = subprocess.run(
        ["g++", "-march=native", "-Q", "--help=target", "--version"], capture_output=True, text=True
    ).stdout
    return _key(*(path.read_text() for path in files), version)

"""Compile kernels for targets that CuPy cannot name, such as sm_90a: sm_90 with the instructions of that GPU alone.

CuPy's compiler takes compute capabilities that are numbers. Here NVRTC, in CuPy's binding, gets the target as it is;
the machine code is kept in CuPy's cache folder and loaded by CuPy. Files are compiled without CUDA's headers.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cupy


def module(code: str, file: str, target: str, options: tuple[str, ...]) -> cupy.RawModule:
    """Return a compiled file as a module of CuPy, from the cache if it is there.

    Parameters
    ----------
    code : str
        Text of a .cu file.
    file : str
        Name of the file in messages of the compiler.
    target : str
        Such as "sm_90a".
    options : tuple of str
        Compiler options.

    Raises
    ------
    RuntimeError
        If NVRTC refuses the file or the target; the message is its log.
    OSError
        If the cache folder cannot be written.
    """
    import cupy

    path = cache_path(code, target, *options)
    if not path.exists():
        write(path, _compile(code, file, (f"-arch={target}", "-ftz=true", *options)))
    return cupy.RawModule(path=str(path))


def cache_path(*facts: str, suffix: str = ".cubin") -> pathlib.Path:
    """Return where something that depends on these facts and on the version of NVRTC is kept."""
    import cupy

    version = str(cupy.cuda.nvrtc.getVersion())
    key = hashlib.sha256("\0".join((version, *facts)).encode()).hexdigest()[:32]
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"  # CuPy has no public name for it
    return pathlib.Path(folder).expanduser() / f"vitnp_{key}{suffix}"


def write(path: pathlib.Path, data: bytes) -> None:
    """Write a file of the cache, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _compile(code: str, file: str, options: tuple[str, ...]) -> bytes:
    import cupy

    nvrtc = cupy.cuda.nvrtc
    program = nvrtc.createProgram(code, file, (), ())
    try:
        nvrtc.compileProgram(program, options)
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{error}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)

"""A .cu file as C++ for g++: preprocessed, shared memory declared by hand, every kernel given an entry point."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess

INCLUDE = pathlib.Path(__file__).parent / "include"

_ALIGNED = r"(?:(?:__align__|alignas)\s*\([^)]*\)\s*)?"
_TYPE = r"((?:(?:unsigned|signed|const|volatile|long|struct)\s+)*[\w:]+(?:\s*<[^;<>]*>)?)"
_DYNAMIC = re.compile(rf"extern\s+__shared__\s+{_ALIGNED}{_TYPE}\s+{_ALIGNED}(\w+)\s*\[\s*\]\s*;")
_STATIC = re.compile(rf"(?:static\s+)?__shared__\s+{_ALIGNED}{_TYPE}\s+([^;=]+);")
_DECLARATOR = re.compile(r"\s*(\w+)\s*((?:\[[^\]]*\]\s*)*)$")
_BOUNDS = r"(?:__launch_bounds__\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)\s*)?"
_KERNEL = re.compile(rf"__global__\s+{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(([^)]*)\)")


class TranslationError(ValueError):
    """A construct of CUDA that the emulator does not support."""


@dataclasses.dataclass(frozen=True)
class Translation:
    """C++ text, and the names of the parameters of each kernel."""

    text: str
    kernels: dict[str, list[str]]


def translate(code: str, name: str, options: tuple[str, ...] = (), arch: int = 90) -> Translation:
    """Translate the text of a .cu file.

    Parameters
    ----------
    code : str
    name : str
        What reports call the file.
    options : tuple of str
        ``-DNAME=VALUE`` and ``-Ifolder`` count; ``-std``, ``--use_fast_math`` and the like are for NVRTC alone.
    arch : int
        Compute capability that ``__CUDA_ARCH__`` announces: 75, 80, 90.
    """
    plain = _preprocess(code, name, options, arch)
    shared = iter(range(1_000_000))

    def declare(match: re.Match) -> str:
        declarations = []
        for declarator in re.split(r",(?![^\[\]]*\])", match[2]):
            parts = _DECLARATOR.match(declarator)
            if not parts:
                raise TranslationError(f"{name}: can't read the declaration {match[0]!r}")
            declarations.append(f"EMU_SHARED({match[1]}, {parts[1]}, {parts[2].strip()}, {next(shared)});")
        return " ".join(declarations)

    plain = _DYNAMIC.sub(r"EMU_DYNAMIC_SHARED(\1, \2);", plain)
    plain = _STATIC.sub(declare, plain)
    if "__shared__" in plain:
        line = next(line for line in plain.splitlines() if "__shared__" in line)
        raise TranslationError(f"{name}: can't translate {line.strip()!r}")
    kernels, entries = {}, []
    for before, after, kernel, parameters in _KERNEL.findall(plain):
        kernels[kernel] = [p.split()[-1].strip("*&") for p in parameters.split(",")] if parameters.strip() else []
        entries.append(f"EMU_KERNEL({kernel}, {before or after or 1024})")
    tail = '# 1 "emulator-entries"\n' + "\n".join(entries)
    return Translation(f'#include "cuda_emulator.h"\n{plain}\n{tail}\n', kernels)


def _preprocess(code: str, name: str, options: tuple[str, ...], arch: int) -> str:
    """Run the preprocessor, so that declarations by macros are seen too; line markers are kept."""
    passed = [option for option in options if option.startswith(("-D", "-I", "-U"))]
    own = ["-D__CUDACPU__=1", "-D__CUDACC__=1", "-D__CUDACC_RTC__=1", f"-D__CUDA_ARCH__={arch * 10}"]
    command = ["g++", "-E", "-x", "c++", "-std=gnu++17", f"-I{INCLUDE / 'stubs'}", *own, *passed, "-"]
    marked = f'# 1 "{name}"\n{code}\n'
    done = subprocess.run(command, input=marked, capture_output=True, text=True)
    if done.returncode:
        raise TranslationError(f"{name}: {done.stderr.strip()}")
    return done.stdout

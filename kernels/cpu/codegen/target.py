"""The processor that kernels are compiled for, and LLVM's engine for it, without numba."""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re

import llvmlite.binding as llvm


@functools.cache
def target() -> tuple[str, str, str]:
    """Return triple, name and features of the processor: of this one, unless NUMBA_CPU_* or NUMBA_ENABLE_AVX differ."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name and name.lower() == "generic" else _host_features()
    return llvm.get_process_triple(), name or llvm.get_host_cpu_name(), features


def _host_features() -> str:
    try:
        features = llvm.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this processor
        return ""
    if os.environ.get("NUMBA_ENABLE_AVX") == "0":
        for name in features:
            if name.startswith("avx"):
                features[name] = False
    return features.flatten()


def features() -> frozenset[str]:
    """Return the instruction sets of the target. Code for others would end the process."""
    return frozenset(name[1:] for name in target()[2].split(",") if name.startswith("+"))


@functools.cache
def machine() -> llvm.TargetMachine:
    """Return LLVM's description of the target, which generates machine code."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, name, features = target()
    static = "static" if triple.startswith(("x86", "i")) else "default"
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=name, features=features, opt=3, reloc=static, codemodel="jitdefault", jit=True
    )


@functools.cache
def numba_version() -> str:
    """Return numba's version, without importing it; raise ImportError if it is not installed."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        raise ImportError("numba is not installed")
    text = (pathlib.Path(found.origin).parent / "_version.py").read_text(encoding="utf-8")
    version = re.search(r"[\"']version[\"']: [\"'](.+?)[\"']", text)
    if version is None:
        from importlib import metadata

        return metadata.version("numba")
    return version.group(1)

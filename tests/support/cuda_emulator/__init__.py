"""Run unmodified CUDA kernels on the CPU, so that they can be tested without a GPU.

A kernel's threads become fibres of one process, blocks run one after another, and g++ is all it needs. In mode "check"
every access to memory is looked at: races (whatever the schedule), accesses out of bounds, reads of uninitialized
memory, barriers and warp intrinsics that threads reach at different places, each named by its source line.

- ``translate``: the .cu file as C++;
- ``build``: g++, and a cache keyed by content;
- ``module``: the call shape of CuPy;
- ``include/``: what CUDA C++ is to g++; ``runtime/``: fibres, memory, checks;
- ``nvrtc``: compiles with NVIDIA's own compiler, which needs no GPU either.

Of compute capability 9.0 it knows mbarriers, named barriers, boxes of tensor maps (``tensor_map``) and products of warp
groups; where they order threads, races are found by vector clocks.

Limits: x86-64 Linux; only executed paths are checked; inline PTX has to stand under ``#ifndef __CUDACPU__`` beside a
twin in plain C++, which may use ``emu_copy_later`` and its like for cp.async; kernels are ``extern "C"``; a thread that
has returned counts as arrived at every barrier; timing says nothing. What passes here has been emulated and compiled,
not tested on a GPU.
"""

from __future__ import annotations

from .build import BuildError
from .module import Kernel, KernelError, RawModule
from .translate import TranslationError

__all__ = ["BuildError", "Kernel", "KernelError", "RawModule", "TranslationError"]

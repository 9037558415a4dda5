"""What compute capability 9.0 needs beside kernels: NVRTC's binding in CuPy, and the driver's tensor maps."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
import types
import unittest.mock
from collections.abc import Iterator

import fake_streams
from cuda_emulator.tensor_map import FakeDriver

DRIVER_VERSION = 12080


class NVRTCError(RuntimeError):
    """NVRTC refuses a program."""


class Nvrtc:
    """``cupy.cuda.nvrtc``: its "machine code" is the source text with the options, for the emulator."""

    NVRTCError = NVRTCError

    def __init__(self) -> None:
        self.compiled: list[tuple[str, ...]] = []  # options of each compilation

    def getVersion(self) -> tuple[int, int]:
        return 12, 9

    def createProgram(self, code, name, headers, include_names):
        return types.SimpleNamespace(code=code, options=None)

    def compileProgram(self, program, options) -> None:
        if "-arch=sm_90a" not in options:
            raise NVRTCError("NVRTC_ERROR_COMPILATION")
        program.options = tuple(options)
        self.compiled.append(program.options)

    def getCUBIN(self, program) -> bytes:
        return json.dumps([program.code, program.options]).encode()

    def getProgramLog(self, program) -> str:
        return "wgmma is not supported on this target"

    def destroyProgram(self, program) -> None:
        program.code = None


def code_of(path: str) -> tuple[str, tuple[str, ...]]:
    """Return source text and options of a file of such machine code."""
    code, options = json.loads(pathlib.Path(path).read_text())
    return code, tuple(options)


class Driver(FakeDriver):
    """The driver library; maps have to lie in one array of the device."""

    def __init__(self) -> None:
        super().__init__(_covers)

    def cuDriverGetVersion(self, target) -> int:
        target._obj.value = DRIVER_VERSION
        return 0


def _covers(address: int, size: int) -> None:
    for owner in list(fake_streams._memory.values()):
        start = owner.ctypes.data
        if start <= address and address + size <= start + owner.nbytes:
            return
    raise AssertionError(f"a tensor map reaches {size} bytes from {address}, which lie in no array of the device")


@contextlib.contextmanager
def extended(cuda: types.SimpleNamespace) -> Iterator[Driver]:
    """Turn the replacement of ``cupy.cuda`` into that of a GPU of compute capability 9.0, with a cache of its own."""
    device = cuda.Device
    cuda.Device = lambda *number: types.SimpleNamespace(**(vars(device(*number)) | {"compute_capability": "90"}))
    cuda.nvrtc = Nvrtc()
    cuda.runtime.getDeviceProperties = lambda number: {"name": b"emulated"}
    with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.dict(os.environ, CUPY_CACHE_DIR=folder):
        yield Driver()

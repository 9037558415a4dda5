"""cuBLASLt as :mod:`vitnp.kernels.cuda.cublaslt` calls it, computed by NumPy from the addresses that it is given."""

from __future__ import annotations

import ctypes

import numpy as np

_TYPES = {0: np.float32, 2: np.float16, 14: np.uint16}
_PEDANTIC, _SUMS, _TF32 = 69, 68, 77
_TRANSPOSE_A, _EPILOGUE, _BIAS_POINTER = 3, 7, 8


class FakeCublasLt:
    """The library; each launch goes through `launch`, which runs it now or when a graph is launched.

    Parameters
    ----------
    launch : callable
        Called with a function without arguments, and the addresses that it reads and writes.
    """

    def __init__(self, launch):
        self._launch, self._objects = launch, {}
        self.refuses_bias = False

    def _create(self, target, *facts):
        number = len(self._objects) + 1
        self._objects[number] = {"facts": [fact.value for fact in facts]}
        target._obj.value = number
        return 0

    cublasLtMatmulDescCreate = cublasLtMatrixLayoutCreate = cublasLtMatmulPreferenceCreate = _create

    def cublasLtMatmulPreferenceDestroy(self, of):
        del self._objects[of.value]
        self._objects[of.value] = {}
        return 0

    def _set(self, of, attribute, value, size):
        assert size.value == ctypes.sizeof(value._obj)
        self._objects[of.value][attribute.value] = value._obj.value
        return 0

    cublasLtMatmulDescSetAttribute = cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, a, b, c, d, preference, most, found, count):
        wanted = self._objects[preference.value]
        assert c.value == d.value and wanted[1] >= 64 and all(wanted[which] == 16 for which in (5, 6, 7, 8))
        assert ctypes.sizeof(found._obj) == 96
        refused = self.refuses_bias and self._objects[operation.value].get(_EPILOGUE) == 4
        count._obj.value, found._obj.status, found._obj.workspace = int(not refused), 0, 64
        return 0

    def cublasLtMatmul(self, handle, operation, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm,
                       workspace, size, stream):  # fmt: skip
        operation = dict(self._objects[operation.value])
        (compute, scale), bias = operation["facts"], operation.get(_BIAS_POINTER)
        assert scale == 0 and operation[_TRANSPOSE_A] == 1 and alpha._obj.value == 1 and size.value == 64
        left, right, result = (self._objects[of.value]["facts"] for of in (of_a, of_b, of_d))
        assert left[0] == right[0] and compute in ((_PEDANTIC, _TF32) if left[0] == 0 else (_SUMS,))
        assert all(pointer.value % 16 == 0 for pointer in (a, b, c, d))
        adds_bias, weight = operation.get(_EPILOGUE) == 4, beta._obj.value
        addresses = [a.value, b.value, c.value, d.value]

        def run() -> None:
            x, y = (_numbers(_matrix(address, *facts), compute) for address, facts in zip(addresses, (left, right)))
            total = x.T @ y
            if adds_bias:
                total = total + _matrix(bias, result[0], result[1], 1, result[1]).astype(np.float32)
            out = _matrix(addresses[3], *result)
            if weight:
                total = total + weight * _matrix(addresses[2], *result).astype(np.float32)
            out[...] = total

        self._launch(run, addresses + ([bias] if adds_bias else []), workspace.value)
        return 0


def _matrix(address: int, kind: int, rows: int, columns: int, step: int) -> np.ndarray:
    """A matrix that is stored column by column."""
    dtype = np.dtype(_TYPES[kind])
    bits = (ctypes.c_char * (columns * step * dtype.itemsize)).from_address(address)
    return np.frombuffer(bits, dtype).reshape(columns, step)[:, :rows].T


def _numbers(x: np.ndarray, compute: int) -> np.ndarray:
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    if compute == _TF32:
        return (np.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32)
    return x.astype(np.float32)

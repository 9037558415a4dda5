"""Linear layers in int8: compiled kernels against the reference, to the bit, and the reference against integers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import random_vit
from hypothesis import given, settings
from hypothesis import strategies as st
from vitnp.kernels import reference
from vitnp.kernels.reference.int8 import MAX_INPUTS
from vitnp.kernels.threads import pool

from vitnp import ViT, ViTConfig, kernels
from vitnp.errors import UsageError
from vitnp.vit.model import resolve_precision

k = kernels.for_device("cpu")
needs_int8 = pytest.mark.skipif(
    not kernels.describe().startswith("compiled") or "int8" not in k.precisions(),
    reason="there are no compiled int8 kernels here",
)
steady = settings(derandomize=True, deadline=None, max_examples=60)
TINY, HUGE = np.finfo(np.float32).tiny, np.finfo(np.float32).max


def random(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def difficult_rows(inputs: int) -> np.ndarray:
    """Return rows in which quantization has something to get wrong."""
    rows = random(0, 12, inputs)
    rows[0] = 0
    rows[1], rows[2] = 3.7, -2.5
    rows[3] = HUGE * np.sign(rows[3])
    rows[4] *= 1e-42  # denormal numbers
    rows[5] = 0
    rows[5, inputs // 2] = 1e30
    rows[6] = np.abs(rows[6])
    rows[7] = -np.abs(rows[7]) * 1e-20
    rows[8] = np.resize([127, -127], inputs)
    rows[9] *= TINY
    rows[10, ::2] = -0.0
    return rows


# --- the reference


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_quantized_row_is_within_half_a_step_and_keeps_zero(dtype):
    rows = difficult_rows(53).astype(dtype)
    rows[0, 0] = rows[5, 0] = 0
    quantized = reference.quantize_rows(rows)
    exact = (quantized.values.astype(np.float64) - quantized.zero[:, None]) * quantized.scale[:, None].astype(float)
    step = np.maximum((rows.max(1, initial=0).astype(float) - rows.min(1, initial=0)) / 254, np.finfo(dtype).tiny)
    # Half a step from rounding, and what float32 rounds in the product with the inverse scale.
    assert (np.abs(exact - rows) <= step[:, None] * (0.5 + 254 * 4 * np.finfo(dtype).eps)).all()
    assert (exact[rows == 0] == 0).all()
    assert quantized.values.dtype == np.uint8 and quantized.shape == rows.shape


def test_a_quantized_weight_is_within_half_a_step():
    weight = np.concatenate([difficult_rows(40)[:3], difficult_rows(40)[5:]])
    quantized = reference.quantize_weight(weight)
    error = np.abs(quantized.values * quantized.scale[:, None].astype(np.float64) - weight)
    assert (error <= np.maximum(np.abs(weight).max(1) / 127, TINY)[:, None] * 0.50001).all()
    assert np.abs(quantized.values.astype(int)).max() == 127


def test_the_reference_adds_integers():
    x, weight = random(0, 4, 30), random(1, 5, 30)
    rows, quantized = reference.quantize_rows(x), reference.quantize_weight(weight)
    found = reference.product_int8(rows, quantized)
    for i in range(4):
        for j in range(5):
            values, weights = rows.values[i].tolist(), quantized.values[j].tolist()
            total = sum((a - int(rows.zero[i])) * b for a, b in zip(values, weights))
            assert found[i, j] == np.float32(total) * (rows.scale[i] * quantized.scale[j])
    assert np.linalg.norm(found - x @ weight.T) < 0.02 * np.linalg.norm(found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_gives_nan_and_the_others_do_not(bad):
    x, weight = random(0, 3, 70), random(1, 9, 70)
    x[1, 64] = bad
    for operations in (reference, k):
        found = operations.linear(x, operations.pack_linear(weight, "int8"))
        assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()


# --- compiled kernels


@needs_int8
@steady
@given(
    n=st.integers(1, 20), c=st.integers(1, 200), e=st.integers(1, 110), seed=st.integers(0, 99),
    exponent=st.integers(-38, 30), bias=st.booleans(), scale=st.booleans(), residual=st.booleans(),
)  # fmt: skip
def test_linear_gives_the_bits_of_the_reference(n, c, e, seed, exponent, bias, scale, residual):
    x, weight = random(seed, n, c, scale=10.0**exponent), random(seed + 1, e, c)
    options = {
        "bias": random(seed + 2, e) if bias else None,
        "scale": random(seed + 3, e) if scale else None,
        "residual": random(seed + 4, n, e) if residual else None,
    }
    found = k.linear(x, k.pack_linear(weight, "int8"), **options)
    np.testing.assert_array_equal(found, reference.linear(x, reference.quantize_weight(weight), **options))


@needs_int8
@pytest.mark.parametrize("inputs", [1, 3, 4, 63, 64, 65, 192, 388, 1541])
def test_difficult_rows_give_the_bits_of_the_reference(inputs):
    x, weight, bias = difficult_rows(inputs), random(1, 50, inputs), random(2, 50)
    weight[7] = 0
    found = k.linear(x, k.pack_linear(weight, "int8"), bias)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, reference.linear(x, reference.quantize_weight(weight), bias))
    np.testing.assert_array_equal(found[0], bias)
    np.testing.assert_array_equal(found[np.isfinite(found[:, 7]), 7], bias[7])


@needs_int8
def test_the_largest_sums_are_exact():
    x, weight = np.ones((1, MAX_INPUTS), np.float32), np.ones((1, MAX_INPUTS), np.float32)
    exact = np.float32(254 * 127 * MAX_INPUTS) * (np.float32(1 / 254) * np.float32(1 / 127))
    for sign in (1, -1):
        assert k.linear(x, k.pack_linear(sign * weight, "int8"))[0, 0] == sign * exact
    for operations in (reference, k):
        with pytest.raises(UsageError, match="int8 is for linear layers of at most 66311 inputs.*precision fp32"):
            operations.pack_linear(np.ones((1, MAX_INPUTS + 1), np.float32), "int8")


@needs_int8
def test_gelu_is_within_1e_4():
    x, weight = random(0, 40, 100), random(1, 70, 100, scale=0.2)
    found = k.linear(x, k.pack_linear(weight, "int8"), activation="gelu")
    exact = reference.linear(x, reference.quantize_weight(weight), activation="gelu")
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4)


@needs_int8
@pytest.mark.parametrize("width", [1, 15, 64, 90, 384])
def test_normalized_rows_are_quantized_like_those_of_layernorm(width):
    x, weight, bias = random(0, 2, 7, width, scale=30), random(1, width), random(2, width)
    found = k.layernorm_int8(x, weight, bias, 1e-6)
    values, scale, zero = (part.copy() for part in (found.values, found.scale, found.zero))
    expected = k.quantize_rows(k.layernorm(x, weight, bias, 1e-6))
    assert found.shape == expected.shape == x.shape
    for a, b in ((values, expected.values), (scale, expected.scale), (zero, expected.zero)):
        np.testing.assert_array_equal(a, b)
    layer, some = k.pack_linear(random(3, 20, width), "int8"), k.layernorm_int8(x, weight, bias, 1e-6)[:, 2:5]
    np.testing.assert_array_equal(k.linear(some, layer), k.linear(k.layernorm(x, weight, bias, 1e-6)[:, 2:5], layer))


@needs_int8
def test_out_may_be_the_residual_or_a_column_of_a_larger_array():
    x, weight, residual = random(0, 140, 60), random(1, 60, 60), random(2, 140, 60)
    layer = k.pack_linear(weight, "int8")
    expected = k.linear(x, layer, residual=residual)
    wide = np.zeros((140, 100), np.float32)
    k.linear(x, layer, residual=residual, out=wide[:, 20:80])
    np.testing.assert_array_equal(wide[:, 20:80], expected)
    assert not wide[:, :20].any() and not wide[:, 80:].any()
    np.testing.assert_array_equal(k.linear(x, layer, residual=residual, out=residual), expected)


@needs_int8
def test_quantized_rows_need_quantized_weights():
    rows = k.quantize_rows(random(0, 3, 8))
    for operations in (reference, k):
        with pytest.raises(TypeError, match="int8"):
            operations.linear(rows, random(1, 4, 8))


# --- networks


def network(**changes) -> tuple:
    config = ViTConfig(**({"width": 96, "depth": 3, "heads": 3, "patch": 8, "grid": (4, 4)} | changes))
    return config, random_vit.random_weights(config, seed=1, hidden=200, class_position=True, dtype=np.float32)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


@needs_int8
@pytest.mark.parametrize(
    "changes", [{}, {"registers": 4, "layerscale": True}, {"swiglu": True}, {"width": 90, "heads": 2}]
)
def test_a_network_in_int8_is_near_and_gives_the_same_bits_for_any_number_of_threads_and_any_batch(changes):
    exact = ViT(*network(**changes))
    vit = exact.to(precision="int8")
    assert vit.precision == vit.numerics == "int8"
    images = random(3, 2, 3, 64, 104)
    want = ("key", "query", "token", "cls", "attention")
    expected, found = (v(images, want) for v in (exact, vit))
    assert 0.999 < cosines(expected["key"], found["key"]).mean() < 1 - 1e-7
    for count in (1, 2, 4):
        with pool.thread_limit(count):
            alone = vit(images[:1], want)
            for name in want:
                np.testing.assert_array_equal(alone[name], found[name][:1])


def test_int8_works_without_compiled_kernels_and_with_float64():
    config, weights = network()
    vit = ViT(config, {name: tensor.astype(np.float64) for name, tensor in weights.items()})
    images = random(3, 1, 3, 40, 48).astype(np.float64)
    exact, found = (v(images, "key")["key"] for v in (vit, vit.to(precision="int8")))
    assert found.dtype == np.float64 and 0.999 < cosines(exact, found).mean() < 1 - 1e-7


def test_where_there_is_no_int8_the_message_says_so(monkeypatch):
    monkeypatch.setattr(k, "precisions", lambda: ("fp32",))
    with pytest.raises(
        UsageError, match="no precision 'int8' on this machine's CPU, which would need .*; choose among"
    ):
        resolve_precision("int8")
    monkeypatch.setattr(kernels, "for_device", lambda device: SimpleNamespace(precisions=lambda: ("fp32", "fp16")))
    with pytest.raises(UsageError, match="'int8' on this machine's GPU: int8 is for the CPU; choose among auto, fp32"):
        resolve_precision("int8", "cuda")


# --- other processors

BITS = """
import hashlib, sys
import numpy as np
sys.path[:0] = ["tests/kernels", "tests/support"]
from test_int8 import difficult_rows, k, random
from vitnp.kernels.cpu.codegen import int8, simd
digest = hashlib.sha256()
for inputs in (5, 64, 75, 400):
    x, weight, bias = difficult_rows(inputs), random(1, 61, inputs), random(2, 61)
    found = k.linear(x, k.pack_linear(weight, "int8"), bias, residual=random(3, 12, 61))
    digest.update(found.tobytes())
print(digest.hexdigest(), simd.LANES, int8.INSTRUCTION)
"""


def bits_of(**environment: str) -> list[str]:
    settled = {name: value for name, value in os.environ.items() if name not in ("VITNP_LANES", "VITNP_KERNELS")}
    done = subprocess.run(
        [sys.executable, "-c", BITS], env={**settled, **environment}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_int8
@pytest.mark.slow(reason="compiles the kernels for other processors")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these are names of x86 processors")
def test_every_width_and_instruction_gives_the_same_bits(tmp_path):
    here = bits_of()
    others = [
        {"VITNP_LANES": "4"}, {"VITNP_LANES": "8"}, {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"},
        {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"},
        {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx512f,+avx512bw,+avx512dq,+avx512vl,+fma,+avx2"},
    ]  # fmt: skip
    lanes = int(here[1])
    seen = {tuple(here[1:])}
    for environment, needed in zip(others, (4, 8, 4, 8, 16)):
        if needed <= lanes:
            digest, *variant = bits_of(VITNP_CACHE=str(tmp_path), **environment)
            assert digest == here[0], environment
            seen.add(tuple(variant))
    assert len(seen) > 2 and ("4", "pmaddwd") in seen


@needs_int8
def test_arm_multiplies_bytes_with_its_own_instruction(monkeypatch):
    import llvmlite.binding as llvm
    from llvmlite import ir
    from vitnp.kernels.cpu.codegen import int8, simd

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    monkeypatch.setattr(int8, "INSTRUCTION", "sdot")
    module = ir.Module()
    module.triple = "aarch64-unknown-linux-gnu"
    vector, sums = ir.VectorType(simd.FLOAT, 4), ir.VectorType(simd.I32, 4)
    function = ir.Function(module, ir.FunctionType(sums, [vector, vector, sums]), "f")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(int8.add_products_of_quads(simd.Vectors(builder, 4), *function.args))
    target = llvm.Target.from_triple(module.triple).create_target_machine("generic", "+neon,+fp-armv8,+dotprod")
    assembly = target.emit_assembly(llvm.parse_assembly(str(module)))
    assert "sdot" in assembly and "\tbl\t" not in assembly

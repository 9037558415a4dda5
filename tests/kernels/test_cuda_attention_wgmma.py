"""Attention by warp groups (compute capability 9.0) against float64, and when it is used: emulated, and on an H100 or
H200 with ``pytest -m gpu``."""

from __future__ import annotations

import logging
import subprocess
import sys
import types
import unittest.mock
import warnings

import fake_cupy
import numpy as np
import pytest

from tests.kernels import test_cuda_attention as other_form
from tests.kernels.test_cuda_attention import expected, from_bfloat16, random, rotated, rotation_of, to_bfloat16


def raise_it(key, error: Exception) -> None:
    """Stands for the use of the other form when something goes wrong."""
    raise error


@pytest.fixture(scope="module", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def cupy(request):
    """A GPU of compute capability 9.0 on which the kernel's trial has been passed."""
    if request.param == "emulated":
        with fake_cupy.installed("check", hopper=True) as fake:
            from vitnp.kernels.cuda import attention_trial, attention_wgmma

            attention_wgmma._refuse = raise_it
            with unittest.mock.patch.object(attention_trial, "require"):
                yield fake
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vitnp.kernels.cuda import loader

        trouble = loader.find_trouble()
    if trouble or loader.require_cupy().cuda.Device().compute_capability != "90":
        pytest.skip(trouble or "attention by warp groups is for compute capability 9.0")
    yield loader.require_cupy()


@pytest.fixture
def launched(cupy, monkeypatch) -> list[tuple[str, ...]]:
    """The options of each launch of the kernel; all tests that use it expect some."""
    from vitnp.kernels.cuda import attention_wgmma

    found, launch = [], attention_wgmma.launch
    monkeypatch.setattr(attention_wgmma, "launch", lambda *arguments: (found.append(arguments[-1]), launch(*arguments)))
    yield found
    assert found


@pytest.mark.parametrize(
    "images, rows, tokens, heads",
    [(1, 1, 1, 1), (2, 3, 128, 2), (1, 129, 65, 2), (1, 64, 129, 1), (2, 130, 255, 1), (1, 70, 1100, 1)],
    ids=["least", "whole tile", "less than a tile", "tile and a bit", "several blocks", "stages used three times"],
)
def test_sizes(cupy, launched, images, rows, tokens, heads):
    other_form.test_heads_of_64(cupy, np.float16, images, rows, tokens, heads)


@pytest.mark.parametrize("scale", [0.0, 20.0])
def test_flat_and_steep_softmax(cupy, launched, scale):
    other_form.test_flat_and_steep_softmax(cupy, np.float16, scale)


def test_a_maximum_that_moves_from_tile_to_tile(cupy, launched):
    query, key, value = random(1, 1, 66, 64, dtype=np.float16) * np.float16(8), *random(2, 2, 1, 700, 64)
    key *= np.linspace(0.1, 3, 700)[:, None]
    key, value = key.astype(np.float16), value.astype(np.float16)
    found = other_form.attention(cupy, query, key, value, 1)
    np.testing.assert_allclose(found, expected(query, key, value, 1), atol=2e-3, rtol=0)


def test_scores_far_below_zero_do_not_vanish(cupy, launched):
    other_form.test_scores_far_below_zero_do_not_vanish(cupy)


def test_equal_keys_give_the_mean_of_the_values_even_if_they_are_huge(cupy, launched):
    query, key = random(3, 1, 65, 64, dtype=np.float16), np.ones((1, 130, 64), np.float16)
    value = np.full((1, 130, 64), 60000, np.float16)
    found = other_form.attention(cupy, query, key, value, 1)
    np.testing.assert_allclose(found, value[:, :65], rtol=1e-3)


def test_a_fused_product_is_read_where_it_lies(cupy, launched):
    other_form.test_a_fused_product_is_read_where_it_lies(cupy, np.float16, 64)


def test_memory_beside_the_arrays_is_not_used(cupy, launched):
    """Not even the next image's, for keys past the end; the emulator's boxes end where the arrays do."""
    fused = cupy.asarray(random(4, 3, 200, 3 * 64, dtype=np.float16))
    fused[0] = np.nan
    fused[2] = np.nan
    parts = [fused[1:2, :, 64 * i : 64 * (i + 1)] for i in range(3)]
    from vitnp.kernels.cuda.attention import attention

    found = cupy.asnumpy(attention(*parts, 1))
    np.testing.assert_allclose(found, expected(*map(cupy.asnumpy, parts), 1), atol=1.5e-3, rtol=0)


@pytest.mark.parametrize("tokens", [40, 150])
def test_bfloat16(cupy, launched, tokens):
    from vitnp.kernels.cuda import attention as module

    bits = [to_bfloat16(random(seed, 1, n, 128)) for seed, n in ((9, 66), (10, tokens), (11, tokens))]
    found = module.attention(*map(cupy.asarray, bits), 2)
    wanted = expected(*map(from_bfloat16, bits), 2)
    np.testing.assert_allclose(from_bfloat16(cupy.asnumpy(found)), wanted, atol=1.2e-2, rtol=0)
    assert launched == [("-DBFLOAT16",)]


@pytest.mark.parametrize("images, rows, tokens, heads", [(2, 1, 5, 2), (1, 130, 131, 1)])
def test_rotation(cupy, launched, images, rows, tokens, heads):
    other_form.test_attention_with_rotation(cupy, np.float16, images, rows, tokens, 64, heads)
    assert launched == [("-DROTARY",)]


def test_rotation_in_bfloat16(cupy, launched):
    from vitnp.kernels.cuda.attention import attend_fused

    rotation, qkv = rotation_of(25, 70, 64), random(26, 1, 70, 3 * 64)
    query, key, value = np.split(qkv, 3, axis=2)
    wanted = expected(rotated(query, rotation, 1), rotated(key, rotation, 1), value, 1)  # before keys are overwritten
    found = attend_fused(cupy.asarray(qkv), 1, cupy.asarray(rotation), precision="bf16")
    np.testing.assert_allclose(from_bfloat16(cupy.asnumpy(found)), wanted, atol=3e-2, rtol=0)
    assert launched == [("-DBFLOAT16", "-DROTARY")]


def test_the_same_bits_whatever_the_schedule(cupy, launched):
    """The emulator shuffles threads and copies anew for each launch."""
    arrays = random(17, 3, 1, 300, 64, dtype=np.float16)
    first = other_form.attention(cupy, *arrays, 1)
    for _ in range(3):
        np.testing.assert_array_equal(other_form.attention(cupy, *arrays, 1), first)


@pytest.mark.slow(reason="both forms on the emulator")
@pytest.mark.parametrize("options", [(), ("-DBFLOAT16", "-DROTARY")], ids=["fp16", "bf16, rotary"])
def test_the_trial_is_passed(cupy, launched, options):
    from vitnp.kernels.cuda import attention_trial

    attention_trial.compare(options)


# --- When it is used --------------------------------------------------------------------------------------------------


@pytest.fixture
def unused(cupy, monkeypatch):
    """Nothing of the kernel may be launched."""
    from vitnp.kernels.cuda import attention_wgmma

    monkeypatch.setattr(attention_wgmma, "_reasons", {})
    monkeypatch.setattr(attention_wgmma, "launch", lambda *arguments: pytest.fail("launched"))
    return attention_wgmma


def test_other_types_and_sizes_have_the_other_form(cupy, unused):
    other_form.test_heads_of_64(cupy, np.float32, 1, 3, 5, 1)
    other_form.test_heads_of_any_other_size(cupy, np.float16, 32, 32)


def test_arrays_that_the_driver_cannot_map_have_the_other_form(cupy, unused):
    from vitnp.kernels.cuda import tensor_map
    from vitnp.kernels.cuda.attention import attention

    wide = cupy.asarray(random(5, 2, 200, dtype=np.float16))
    windows = wide[:, :192].reshape(2, 3, 64)  # images that are no whole number of rows apart
    assert not tensor_map.fits(windows)
    found = cupy.asnumpy(attention(windows, windows, windows, 1))
    there = np.array(cupy.asnumpy(windows))
    np.testing.assert_allclose(found, expected(there, there, there, 1), atol=1.5e-3, rtol=0)


@pytest.mark.parametrize("capability", ["80", "89", "100", "120"])
def test_other_gpus_have_the_other_form(capability, caplog):
    with fake_cupy.installed("check", hopper=True) as fake:
        device = fake.cuda.Device()
        device.compute_capability = capability
        fake.cuda.Device = lambda *_: device
        other_form.test_heads_of_64(fake, np.float16, 1, 3, 5, 1)
        assert not fake.cuda.nvrtc.compiled and not caplog.records


def outcomes(**facts):
    """A trial that ends like this."""
    return lambda command, **options: subprocess.CompletedProcess(command, **facts)


def ending(run):
    """The module subprocess for the trial alone: the emulator compiles with the real one."""
    return types.SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)


def overtime(command, **options):
    raise subprocess.TimeoutExpired(command, options["timeout"])


@pytest.mark.parametrize(
    "trial, words",
    [
        (outcomes(returncode=1, stderr="Traceback\nRuntimeError: its results are wrong: 3\n"), "results are wrong: 3"),
        (outcomes(returncode=-11, stderr=""), "its trial ended with status -11"),
        (overtime, "its trial did not end within 120 seconds"),
        (unittest.mock.Mock(side_effect=OSError("no more processes")), "no more processes"),
    ],
    ids=["wrong", "crashed", "does not end", "no process"],
)
def test_a_failed_trial_is_said_once_and_the_other_form_computes(monkeypatch, caplog, trial, words):
    with fake_cupy.installed("check", hopper=True) as fake:
        from vitnp.kernels.cuda import attention_trial, attention_wgmma

        monkeypatch.setattr(attention_trial, "subprocess", ending(trial))
        monkeypatch.setattr(attention_wgmma, "launch", lambda *arguments: pytest.fail("launched"))
        with caplog.at_level(logging.WARNING, "vitnp"):
            for _ in range(2):
                other_form.test_heads_of_64(fake, np.float16, 1, 3, 5, 1)
            other_form.test_attention_with_rotation(fake, np.float16, 1, 3, 5, 64, 1)
    (record,) = caplog.records
    assert words in record.getMessage() and "slower kernel" in record.getMessage()


def test_a_compiler_or_driver_that_refuses_is_said_once(monkeypatch, caplog):
    for broken in ("compiler", "driver"):
        caplog.clear()
        with fake_cupy.installed("check", hopper=True) as fake:
            from vitnp.kernels.cuda import attention_trial, tensor_map

            monkeypatch.setattr(attention_trial, "require", lambda *_: None)
            if broken == "compiler":
                monkeypatch.setattr(
                    fake.cuda.nvrtc, "getCUBIN", unittest.mock.Mock(side_effect=RuntimeError("too old"))
                )
            else:
                monkeypatch.setattr(tensor_map, "driver", unittest.mock.Mock(side_effect=OSError("too old")))
            with caplog.at_level(logging.WARNING, "vitnp"):
                for _ in range(2):
                    other_form.test_heads_of_64(fake, np.float16, 1, 3, 5, 1)
        (record,) = caplog.records
        assert "too old" in record.getMessage()


def test_a_trial_takes_place_once(monkeypatch):
    commands = []

    def run(command, **options):
        from vitnp.kernels.cuda import attention_trial

        commands.append(command)
        monkeypatch.setattr(attention_trial, "compare", lambda options: commands.append(options))
        return subprocess.CompletedProcess(command, attention_trial.main(command[3:]), stderr="")

    with fake_cupy.installed("check", hopper=True):
        from vitnp.kernels.cuda import attention_trial

        monkeypatch.setattr(attention_trial, "subprocess", ending(run))
        for _ in range(2):
            attention_trial.require(0, ("-DROTARY",))
    command, options = commands
    assert command == [sys.executable, "-m", "vitnp.kernels.cuda.attention_trial", "0", "-DROTARY"]
    assert options == ("-DROTARY",)


def test_a_trial_notices_wrong_results(monkeypatch):
    with fake_cupy.installed("check", hopper=True) as fake:
        from vitnp.kernels.cuda import attention, attention_trial, attention_wgmma

        def nonsense(query, key, value, out, scale, rotation, options):
            out[...] = wanted
            out[1, 140, 3] += np.float16(0.1)

        query = attention_trial.problem(())[0]
        wanted = fake.zeros(query.shape, np.float16)
        monkeypatch.setattr(attention_wgmma, "launch", nonsense)
        monkeypatch.setattr(attention, "attend_rotated", lambda *arguments: wanted.copy())
        with pytest.raises(RuntimeError, match="its results are wrong: they differ by up to 0.1"):
            attention_trial.compare(())


def test_the_trial_s_command_runs():
    """Where there is no GPU, it says so."""
    with fake_cupy.installed("check", hopper=True):
        from vitnp.kernels.cuda import attention_trial

        try:
            attention_trial.require(0, ())
        except RuntimeError as error:
            assert str(error).startswith("vitnp.errors.DeviceError: ")

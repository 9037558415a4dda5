"""``python -m bench gpu`` on a simulated GPU: wrong results, steps that fail, the final report."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import sys
import time

import fake_cupy
import fake_streams
import numpy as np
import pytest

# bench/ is no part of the installed package. At the end of the path, so that an installed vitnp stays the one tested.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from bench import gpu
from bench.cpu.vit_peers import Case
from bench.gpu import bars, ceilings, measure, outcomes, processes, programs, sanitizer, table
from bench.gpu.measure import Missing, Timing
from bench.gpu.report import Report, read
from bench.gpu.steps import FIRST, STEPS
from vitnp.vit.config import ViTConfig

ROOT = pathlib.Path(gpu.__file__).parent.parent.parent


class Event(fake_streams.Event):
    """As CuPy's, by the host's clock."""

    def record(self, stream=None):
        super().record(stream)
        self.time = time.perf_counter()


def complete(fake):
    """What the benchmarks ask of CuPy beside arrays and kernels."""
    device = fake.cuda.Device()
    device.attributes = {**device.attributes, "L2CacheSize": 1024}
    device.synchronize, device.mem_info = lambda: None, (1 << 20, 1 << 30)
    fake.cuda.Device = lambda *_: device
    fake.cuda.Event = Event
    fake.cuda.get_elapsed_time = lambda before, after: 1e3 * (after.time - before.time)
    fake.cuda.set_allocator = lambda allocator: None
    fake.cuda.runtime.runtimeGetVersion = lambda: 13000
    properties = {"name": b"Made Up 9000", "major": 9, "minor": 0, "multiProcessorCount": 3}
    properties |= {"totalGlobalMem": 3 << 30, "l2CacheSize": 1 << 20}
    fake.cuda.runtime.getDeviceProperties = lambda device: properties
    fake.__version__ = "0"
    return fake


@pytest.fixture
def cupy():
    forget()
    with fake_cupy.installed("fast") as fake:  # every kernel has been checked by itself
        yield complete(fake)
    forget()


def forget() -> None:
    """The steps' modules hold on to the loader that was there when they were imported."""
    for name in [name for name in sys.modules if name.startswith("bench.gpu.")]:
        if hasattr(sys.modules[name], "require_cupy"):
            del sys.modules[name]


@pytest.fixture
def run_step(tmp_path, monkeypatch):
    """Runs a step's function here and now."""

    def run(module: str, function: str = "run", *, seconds: float = 1000.0, **constants) -> list[dict]:
        found = importlib.import_module(f"bench.gpu.{module}")
        monkeypatch.setattr(measure, "MOST", measure.FEWEST)
        for name, value in constants.items():
            monkeypatch.setattr(found, name, value)
        path = tmp_path / f"{module}-{function}.jsonl"
        report = Report(path, seconds, module)
        getattr(found, function)(report, argparse.Namespace(quick=False, photographs=None))
        return read(path)

    return run


def checks(records) -> dict[str, bool]:
    return {record["name"]: record["passed"] for record in records if record["kind"] == "check"}


def times(records) -> set[str]:
    return {record["contender"] for record in records if record["kind"] == "time"}


# --- Steps, on tiny arrays --------------------------------------------------------------------------------------------


DEVICE = {"name": "X", "multiprocessors": 3, "memory_gib": 1.0, "l2_mib": 60, "driver": "1", "cuda": "13.0"}
SMALL = {"ROWS": (330,), "CLUSTERS": (8,), "WIDTH": 64, "SAMPLE": 20}


@pytest.mark.slow(reason="large arrays on the emulator")
def test_kmeans_is_checked_and_timed_against_the_others(cupy, run_step):
    records = run_step("kmeans", **SMALL)
    assert len(checks(records)) == 8 and all(checks(records).values())
    assert {"vitnp", "cupy"} <= times(records)
    ours = bars.find(records, {"rows": 330, "clusters": 8, "dtype": "fp32"}, "vitnp")
    assert ours["rate"] == pytest.approx(330 * 64 * 4 / ours["seconds"])
    why = {record["contender"]: record["why"] for record in records if record["kind"] == "missing"}
    assert why["cuML"] == "No module named 'cuml'" and why["flash-kmeans"].startswith("No module named")


@pytest.mark.slow(reason="k-means on the emulator")
@pytest.mark.parametrize(
    "field, spoil, what",
    [
        ("labels", lambda labels: labels[::-1], "labels"),
        ("counts", lambda counts: counts + 1, "counts"),
        ("sums", lambda sums: sums * 1.001, "sums"),
        ("inertia", lambda inertia: inertia * np.nan, "inertia"),
    ],
)
def test_a_wrong_iteration_is_named_and_the_rest_is_done(cupy, run_step, monkeypatch, field, spoil, what):
    from vitnp.kernels.cuda import dispatch

    right = dispatch.kmeans_step

    def wrong(x, *args, **options):
        step = right(x, *args, **options)
        spoilt = spoil(getattr(step, field)).view(fake_cupy.ndarray)
        return step._replace(**{field: spoilt}) if x.dtype == np.float16 else step

    monkeypatch.setattr(dispatch, "kmeans_step", wrong)
    records = run_step("kmeans", **SMALL)
    failed = {name for name, passed in checks(records).items() if not passed}
    assert f"k-means, 330 x 64, K = 8, fp16: {what}" in failed
    assert all("fp16" in name for name in failed)
    assert bars.find(records, {"dtype": "fp16"}, "vitnp") and bars.find(records, {"dtype": "fp32"}, "cupy")


def test_out_of_time_is_on_record(cupy, run_step):
    records = run_step("kmeans", seconds=0.0, **SMALL)
    assert {record["kind"] for record in records} == {"skipped"}
    assert {record["why"] for record in records} == {"out of time"}


@pytest.mark.slow(reason="large arrays on the emulator")
def test_similarity_and_attention(cupy, run_step):
    records = run_step("similarity", CASES=[(110, 70, 0, "fp32"), (110, 70, 5, "fp32"), (110, 70, 1, "fp32")], WIDTH=64)
    assert len(checks(records)) == 5 and all(checks(records).values())
    assert {"vitnp", "cupy"} <= times(records)
    records = run_step("attention", CASES=[(2, 70, "fp16"), (1, 70, "fp32")])
    assert list(checks(records).values()) == [True, True]
    ours = bars.find(records, {"dtype": "fp16"}, "vitnp")
    assert ours["rate"] == pytest.approx(4 * 2 * 6 * 70**2 * 64 / ours["seconds"])
    assert ours["case"]["form"] == "mma.sync"
    why = {record["contender"]: record["why"] for record in records if record["kind"] == "missing"}
    assert why["vitnp, wgmma"] == "it needs compute capability 90, and the GPU has 89"


@pytest.mark.slow(reason="attention on the emulator")
def test_both_forms_of_attention_are_checked_and_timed(cupy, run_step, monkeypatch):
    from vitnp.kernels.cuda import attention_wgmma

    form = ["wgmma"]

    @contextlib.contextmanager
    def switched_off():
        form[0] = "mma.sync"
        yield
        form[0] = "wgmma"

    monkeypatch.setattr(attention_wgmma, "why_not", lambda *options: "")
    monkeypatch.setattr(attention_wgmma, "attend", lambda *arguments: False)  # of the emulated GPU
    monkeypatch.setattr(attention_wgmma, "switched_off", switched_off)
    records = run_step("attention", CASES=[(1, 70, "fp16")])
    assert list(checks(records).values()) == [True, True] and form == ["wgmma"]
    assert {"vitnp", "vitnp, mma.sync"} <= times(records)
    timed = [record for record in records if record["kind"] == "time"]
    assert {record["case"]["form"] for record in timed} == {"wgmma"}
    assert "1 x 70 tokens  fp16  wgmma" in table.text({"device": DEVICE}, records)


@pytest.mark.slow(reason="a network on the emulator")
def test_wrong_attention_is_noticed(cupy, run_step, monkeypatch):
    from vitnp.kernels.cuda import dispatch

    right = dispatch.attention
    monkeypatch.setattr(dispatch, "attention", lambda *args: right(*args) * np.float16(1.01))
    assert list(checks(run_step("attention", CASES=[(2, 70, "fp16")])).values()) == [False]


def test_ceilings(cupy, run_step):
    records = run_step("ceilings", COPIED=4096, SIDE=64)
    assert {"copy", "fp32", "fp16"} <= set(ceilings.rates(records))
    assert all(checks(records).values())


class Tiny(Case):
    """A network that an emulator gets through."""

    @property
    def config(self) -> ViTConfig:
        return ViTConfig(64, 2, 1, self.patch, (self.side // self.patch,) * 2)


@pytest.mark.slow(reason="networks on the emulator")
def test_networks(cupy, run_step):
    records = run_step("network", CASES=[Tiny("S", 16, 32, 2)])
    assert all(checks(records).values())
    timed = [
        record["case"]["want"] for record in records if record["kind"] == "time" and record["contender"] == "vitnp"
    ]
    assert timed == ["key", "token"]


@pytest.mark.slow(reason="networks on the emulator")
def test_one_error_of_torch_does_not_end_the_networks(cupy, run_step, monkeypatch):
    module = importlib.import_module("bench.gpu.network")

    def fail():
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution")

    monkeypatch.setattr(module, "torch_call", lambda *args: fail)
    records = run_step("network", CASES=[Tiny("S", 16, 32, 2), Tiny("S", 16, 48, 1)])
    assert len(checks(records)) == 8 and all(checks(records).values())
    assert times(records) == {"vitnp", "vitnp, without graph"}
    why = [record["why"] for record in records if record["kind"] == "missing"]
    assert why == ["RuntimeError: CUDA error: no kernel image is available"] * 4


def test_layers(cupy, run_step, monkeypatch):
    cases = [("layernorm", 64, "fp16"), ("gelu", 64, "fp32"), ("layernorm", 64, "fp32")]
    records = run_step("layers", ROWS=70, CASES=cases)
    assert len(checks(records)) == 3 and all(checks(records).values())
    assert bars.find(records, {"layer": "layernorm", "dtype": "fp32"}, "cupy")
    from vitnp.kernels.cuda import dispatch

    right = dispatch.layernorm
    monkeypatch.setattr(dispatch, "layernorm", lambda *args: right(*args) + np.float16(0.1))
    records = run_step("layers", ROWS=70, CASES=cases[:1])[len(records) :]
    (wrong,) = table.wrong(records)
    assert "differ: (0, 0) is" in wrong and "expected" in wrong


@pytest.mark.slow(reason="large images on the emulator")
def test_refinements(cupy, run_step):
    records = run_step("refinement", SIZES=[(40, 32)])
    assert len(checks(records)) == 6 and all(checks(records).values())
    assert times(records) == {"vitnp", "vitnp on the CPU"}


@pytest.fixture
def small_photographs(tmp_path, monkeypatch):
    """Two photographs and a network that an emulator gets through."""
    import functools

    from PIL import Image

    import vitnp
    from tests.kernels import test_device
    from vitnp import pipeline

    for index in range(2):
        Image.fromarray(test_device.scene(index, (24, 32))).save(tmp_path / f"{index}.jpg")
    monkeypatch.setattr(vitnp, "load_vit", lambda name: test_device.network(), raising=False)
    small = functools.partial(pipeline.segment_image, short_side=32, collection=None)
    monkeypatch.setattr(vitnp, "segment_image", small, raising=False)
    return tmp_path


@pytest.mark.slow(reason="whole photographs on the emulator")
def test_stages_of_photographs_and_the_kernels_in_them(cupy, run_step, small_photographs):
    records = run_step("stages", SAMPLES=small_photographs, RUNS=1)
    timed = [record for record in records if record["kind"] == "time"]
    assert [(record["case"]["device"], record["case"]["precision"]) for record in timed[::2]] == [
        ("cuda", "fp16"), ("cuda", "fp32"), ("cpu", "fp32")
    ]  # fmt: skip
    assert {"network", "cluster", "refine"} <= set(timed[0]["stages"])
    kernels = [record for record in records if record["kind"] == "kernel" and record["within"] == "0.jpg, fp16"]
    found = {record["name"]: record for record in kernels}
    assert found["attention_half"]["launches"] == 1 and {"layernorm", "image_level_start", "solver_step"} <= set(found)
    assert kernels[0]["seconds"] == max(record["seconds"] for record in kernels)
    text = table.text({"device": DEVICE}, records)
    assert "kernels, 0.jpg, fp16" in text and "network" in text


@pytest.mark.slow(reason="photographs on the emulator")
def test_the_image_level_of_a_batch_is_compared_counted_and_timed(cupy, run_step, small_photographs):
    records = run_step("image_level", SAMPLES=small_photographs, BATCH=3, SHORT_SIDE=32)
    assert len(checks(records)) == 4 and all(checks(records).values())
    assert times(records) == {"vitnp", "vitnp on the CPU"}
    kernels = [record["name"] for record in records if record["kind"] == "kernel"]
    assert sorted(kernels) == ["image_level_answer", "image_level_start"]
    assert "batch 3  up to 20 patches x 64" in table.text({"device": DEVICE}, records)


@pytest.mark.slow(reason="the image level on the emulator")
def test_a_collection_is_clustered_on_both_devices(cupy, run_step, small_photographs, monkeypatch):
    from bench.gpu import image_level
    from vitnp.method import collection_level

    for name, value in (("SAMPLES", small_photographs), ("BATCH", 3), ("SHORT_SIDE", 32)):
        monkeypatch.setattr(image_level, name, value)
    for name, sample in (("DATASET", 400), ("CATEGORY", 300)):
        config = dataclasses.replace(getattr(collection_level, name), sample=sample, starts=1)
        monkeypatch.setattr(collection_level, name, config)
    small = {"PHOTOGRAPHS": 120, "CATEGORIES": 2, "TIMED": {"cuda": 3, "cpu": 2}, "GPU_BATCH": 3}
    records = run_step("collection", **small)
    assert times(records) == {"vitnp", "vitnp on 2 cores"} and all(checks(records).values())
    ours = bars.find(records, {"collection": 120}, "vitnp")
    assert set(ours["stages"]) == {"image level", "levels", "categories"}


@pytest.mark.slow(reason="whole photographs on the emulator")
@pytest.mark.parametrize(
    "step, function", [("stages", "run"), ("refinement", "run"), ("agreement", "keys"), ("agreement", "masks")]
)
def test_a_cpu_without_compiled_kernels_is_no_baseline(cupy, run_step, monkeypatch, small_photographs, step, function):
    from vitnp.kernels import for_device

    monkeypatch.setenv("VITNP_KERNELS", "reference")
    assert for_device("cpu") is for_device("reference")
    given = {"SAMPLES": small_photographs, "RUNS": 1} if step == "stages" else {}
    records = run_step(step, function, **given)
    assert table.wrong(records) == ["the CPU computes with its compiled kernels (VITNP_KERNELS is reference; unset it)"]
    assert not any(record["case"].get("device") == "cpu" for record in records if record["kind"] == "time")


@pytest.mark.slow(reason="a network on the emulator")
def test_keys_are_compared_with_the_cpu_s(cupy, run_step, monkeypatch):
    records = run_step("agreement", "keys", PATCHES=1, CASES=[Tiny("S", 16, 32, 1)])
    assert len(checks(records)) == 4 and all(checks(records).values())
    module = importlib.import_module("vitnp.kernels.cuda.attention")
    right = module.attend_rotated
    monkeypatch.setattr(module, "attend_rotated", lambda *args: right(*args) * np.float16(1.1))
    records = run_step("agreement", "keys", PATCHES=1, CASES=[Tiny("S", 16, 32, 1)])
    assert not any(checks(records[4:]).values())


@pytest.mark.parametrize("moved, right", [(0, True), (5, False)])
@pytest.mark.parametrize("given", [False, True])
def test_masks_are_compared_with_the_cpu_s(run_step, monkeypatch, tmp_path, given, moved, right):
    from PIL import Image

    from bench.gpu import agreement

    truth = np.zeros((40, 50), bool)
    truth[10:30, 10:40] = True
    photographs = None
    if given:
        photographs = tmp_path / "photographs"
        for kind, picture in (("images", np.zeros((40, 50, 3), np.uint8)), ("masks", truth.astype(np.uint8) * 255)):
            (photographs / kind).mkdir(parents=True)
            for name in "ab":
                Image.fromarray(picture).save(photographs / kind / f"{name}.png")

    def segmented(folder, out, *options, seconds):
        shift = moved if "cuda" in options else 0
        return {path.stem: np.roll(truth, shift, axis=1) for path in folder.iterdir()}

    monkeypatch.setattr(agreement, "segmented", segmented)
    path = tmp_path / "records"
    agreement.masks(Report(path, 100, "masks"), argparse.Namespace(quick=False, photographs=photographs))
    found = checks(read(path))
    assert list(found.values()) == [right, right]
    assert all(("2 photographs" if given else "5 photographs") in name for name in found)


def test_masks_that_take_too_long_are_not_wrong(cupy, run_step):
    def segmented(folder, out, *options, seconds):
        raise TimeoutError("vitnp.cli.segment took more than 9 s")

    records = run_step("agreement", "masks", segmented=segmented)
    assert [record["kind"] for record in records] == ["skipped"] * 3


def test_a_command_that_was_stopped_has_no_masks(tmp_path, photograph, monkeypatch):
    from bench.gpu import agreement

    monkeypatch.setattr(processes, "run", lambda *_: None)
    with pytest.raises(TimeoutError, match="--device cpu took more than 1 s"):
        agreement.segmented(photograph.parent, tmp_path / "out", "--device", "cpu", seconds=1)


def test_one_precision_s_masks_may_fail(cupy, run_step, monkeypatch):
    def segmented(folder, out, *options, seconds):
        if "fp32" in options:
            raise RuntimeError("vitnp.segment ended with the status 2: no memory")
        return {path.stem: np.ones((3, 4), bool) for path in folder.iterdir()}

    records = run_step("agreement", "masks", segmented=segmented)
    assert table.wrong(records) == ["masks, fp32 (vitnp.segment ended with the status 2: no memory)"]
    assert checks(records)["masks in fp16, 5 photographs: 1 - IoU with the CPU's"]


@pytest.mark.slow(reason="runs the command")
def test_the_command_s_masks_are_read(tmp_path, photograph):
    from bench.gpu import agreement
    from bench.gpu.folder import SIZE, make_photographs

    make_photographs(tmp_path / "in", 7, None)
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert len(names) == 7 and len({(tmp_path / "in" / name).read_bytes() for name in names}) == 7
    for name in names[1:]:
        (tmp_path / "in" / name).unlink()
    found = agreement.segmented(tmp_path / "in", tmp_path / "out", "--device", "cpu", "--refine", "none", seconds=300)
    assert found["0000"].shape == SIZE[::-1] and found["0000"].any()
    with pytest.raises(RuntimeError, match="--device nowhere ended with the status 2"):
        agreement.segmented(tmp_path / "in", tmp_path / "out", "--device", "nowhere", seconds=300)


@pytest.mark.slow(reason="large arrays on the emulator")
def test_large_arrays_are_compared_with_their_parts(cupy, run_step, monkeypatch):
    small = {"MANY": 64 * 200, "BEYOND": 30, "TAIL": 50, "WIDTH": 64}
    records = run_step("agreement", "large", **small)
    assert len(checks(records)) == 12 and all(checks(records).values())
    from vitnp.kernels.cuda import dispatch

    right = dispatch.kmeans_step

    def wrong(x, *args, **options):
        step = right(x, *args, **options)
        if len(x) > 200:
            step.labels[-9:] = 1 - step.labels[-9:]
        return step

    monkeypatch.setattr(dispatch, "kmeans_step", wrong)
    failed = [record["name"] for record in run_step("agreement", "large", **small)[12:] if not record.get("passed")]
    assert "N x D > 2^31, k-means, euclidean: share of the last labels that differ" in failed


def test_large_arrays_are_left_out_where_memory_is_short(cupy, run_step):
    (record,) = run_step("agreement", "large")
    assert record["kind"] == "skipped" and "GiB" in record["why"]


def test_torch_s_network_is_the_same(monkeypatch):
    torch = pytest.importorskip("torch")
    from bench.cpu.vit_peers import random_weights
    from bench.gpu import torch_twin
    from vitnp.vit.model import ViT

    case = Case("S", 16, 48, 2)
    weights, images = random_weights(case.config), case.images()
    ours = ViT(case.config, weights)(images, ("key", "token"))
    for want, expected in ours.items():
        call = torch_twin.forward(case.config, weights, want, device="cpu", dtype="float32")
        found = call(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow(reason="every kernel on the emulator")
def test_every_kernel_is_launched_for_the_sanitizer(cupy, monkeypatch):
    from bench.gpu import small as small_

    launched, launch = set(), fake_cupy.RawKernel.__call__

    def noted(self, *args, **options):
        launched.add(self._kernel.name)
        launch(self, *args, **options)

    monkeypatch.setattr(fake_cupy.RawKernel, "__call__", noted)
    monkeypatch.setattr(small_, "SHAPES", ((70, 8, 64),))
    monkeypatch.setattr(small_, "WIDTHS", (384,))
    small_.launch(cupy)
    there = set(sanitizer.kernel_names()) - {"attention_wgmma"}  # of another compute capability than this GPU's
    assert len(there) > 40
    assert there <= launched


# --- Time -------------------------------------------------------------------------------------------------------------


def test_a_peer_that_fails_is_missing_and_ours_is_an_error(cupy):
    timer = measure.Timer(cupy)

    def fail():
        raise ValueError("no such thing\nat all")

    timings, missing = timer.medians({"vitnp": lambda: None, "peer": fail}, 0.1)
    assert set(timings) == {"vitnp"} and missing == {"peer": "ValueError: no such thing"}
    with pytest.raises(ValueError, match="no such thing"):
        timer.medians({"vitnp": fail, "peer": lambda: None}, 0.1)


def test_memory_may_run_out_for_anybody(cupy):
    class OutOfMemoryError(RuntimeError):
        pass

    def fail():
        raise OutOfMemoryError("7 bytes")

    timings, missing = measure.Timer(cupy).medians({"vitnp": fail, "peer": lambda: None}, 0.1)
    assert set(timings) == {"peer"} and missing == {"vitnp": "out of memory"}


def test_a_peer_that_fails_later_costs_nobody_a_figure(cupy):
    calls = {"peer": 0, "vitnp": 0}

    def fail(name: str, after: int):
        calls[name] += 1
        if calls[name] > after:
            raise MemoryError("out of memory")

    timer = measure.Timer(cupy)
    timings, missing = timer.medians({"vitnp": lambda: None, "peer": lambda: fail("peer", 3)}, 0.0)
    assert timings["vitnp"].samples == measure.FEWEST and timings["peer"].samples == 1
    assert missing == {"peer": "out of memory"}
    timings, missing = timer.medians({"vitnp": lambda: fail("vitnp", 3), "peer": lambda: None}, 0.0)
    assert timings["vitnp"].samples == 1 and timings["peer"].samples == measure.FEWEST and not missing


def test_contenders_take_turns(cupy):
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    timer = measure.Timer(cupy)
    timings, _ = timer.medians(calls, 0.0)
    assert "".join(log) == "aabbcc" + "abc" + "bca" + "cab"
    assert timings["a"].samples == measure.FEWEST


def test_a_step_of_a_whole_run_is_a_difference(cupy, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def run(steps):
        clock[0] += 5 + 0.25 * steps

    assert measure.marginal(cupy, run, 2, 12).seconds == pytest.approx(0.25)
    with pytest.raises(Missing, match="no longer"):
        measure.marginal(cupy, lambda steps: None, 2, 12)


# --- Other programs ---------------------------------------------------------------------------------------------------


OUTCOMES = [
    {"test": "tests/kernels/test_a.py::test_fine[gpu]", "outcome": "passed", "seconds": 0.1},
    {"test": "tests/kernels/test_a.py::test_bad[gpu]", "outcome": "failed", "seconds": 0.1, "text": "assert 1 == 2"},
    {"test": "tests/kernels/test_a.py::test_left_out[gpu]", "outcome": "skipped", "seconds": 0.1, "text": "no GPU"},
]


def test_failed_tests_are_named(tmp_path):
    report = Report(tmp_path / "r", 10, "tests")
    programs.judge(report, OUTCOMES, 1)
    records = read(tmp_path / "r")
    assert table.wrong(records) == [
        "test_a.py::test_bad[gpu] (assert 1 == 2)",
        "pytest -m gpu (1 of 2 passed, 1 skipped (no GPU), exit status 1)",
    ]


def test_tests_that_were_all_left_out_prove_nothing(tmp_path):
    report = Report(tmp_path / "r", 10, "tests")
    programs.judge(report, OUTCOMES[2:], 0)
    assert checks(read(tmp_path / "r")) == {"pytest -m gpu": False}


@pytest.mark.parametrize(
    "count, found", [(0, {}), (1, {"pytest -m gpu": True}), (2, {"test_a.py::test_bad[gpu]": False})]
)
def test_tests_that_run_out_of_time_count_as_far_as_they_came(tmp_path, count, found):
    programs.judge(Report(tmp_path / "r", 10, "tests"), OUTCOMES[:count], None)
    records = read(tmp_path / "r")
    assert checks(records).items() >= found.items()
    assert [record["why"] for record in records if record["kind"] == "skipped"] == ["out of time"]


def test_all_tests_for_a_gpu_are_run_wherever_they_stand(tmp_path, monkeypatch):
    ran = []

    def run(command, seconds, output=None, environment=None):
        ran.append((command, seconds))
        pathlib.Path(environment[outcomes.FILE]).write_text(json.dumps(OUTCOMES[0]) + "\n")
        return 0

    monkeypatch.setattr(processes, "run", run)
    programs.tests(Report(tmp_path / "r", 50, "tests"), argparse.Namespace())
    ((command, seconds),) = ran
    assert " ".join(command).endswith(" tests") and "-m gpu" in " ".join(command) and seconds < 50
    assert checks(read(tmp_path / "r")) == {"pytest -m gpu": True}


@pytest.mark.slow(reason="runs pytest")
def test_pytest_tells_how_each_test_ends(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert [1, 2] == [1, 3]\n"
        "def test_no(): pytest.skip('no')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('oh')\ndef test_set_up(broken): pass\n"
    )
    (tmp_path / "test_broken.py").write_text("import nothing_of_the_kind\n")
    path = tmp_path / "outcomes"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        outcomes.__name__,
        "-c",
        "/dev/null",
    ]
    with (tmp_path / "said").open("wb") as said:
        environment = {**os.environ, outcomes.FILE: str(path)}
        line = [*command, "--continue-on-collection-errors", str(tmp_path)]
        assert processes.run(line, 60, said, environment) == 1
    found = {one["test"].rpartition("/")[2]: one for one in map(json.loads, path.read_text().splitlines())}
    assert {name: one["outcome"] for name, one in found.items()} == {
        "test_broken.py": "failed", "test_some.py::test_good": "passed", "test_some.py::test_bad": "failed",
        "test_some.py::test_no": "skipped", "test_some.py::test_set_up": "failed",
    }  # fmt: skip
    assert "[1, 2] == [1, 3]" in found["test_some.py::test_bad"]["text"]
    assert found["test_some.py::test_no"]["text"] == "no"
    assert "nothing_of_the_kind" in found["test_broken.py"]["text"]


@pytest.mark.parametrize(
    "status, text, kind, passed",
    [
        (0, "every kernel ran\n========= ERROR SUMMARY: 0 errors", "check", True),
        (86, "========= Invalid __global__ read of size 4 bytes\n"
         "=========     at kmeans_step+0x10 in a.cu:3\n=========\n"
         "========= Program hit cudaErrorLaunchFailure\n========= ERROR SUMMARY: 2 errors", "check", False),
        (86, "========= Error: Race reported between Write access at similarity_top+0x120\n"
         "=========     and Read access at similarity_top+0x90 [4 hazards]\nevery kernel ran", "check", False),
        (86, "========= Uninitialized __global__ memory read of size 4 bytes\n"
         "=========     at 0x88 in kmeans.cu:9:step(float*)\nevery kernel ran", "check", False),
        (86, "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\nevery kernel ran",
         "check", False),
        # Findings in kernels of other libraries are only counted.
        (86, "========= Uninitialized __global__ memory read of size 4 bytes\n"
         "=========     at void cub::DeviceScanKernel<int>(T1)+0x3640\n"
         "=========     by thread (324,0,0) in block (0,0,0)\n"
         "=========     Saved host backtrace up to driver entry point at kernel launch time\n"
         "=========         Host Frame: kmeans_step [0x297db6]\n=========\n"
         "every kernel ran\n========= ERROR SUMMARY: 1 error",
         "check", True),
        (86, "every kernel ran\n========= ERROR SUMMARY: 9 errors were not printed. Use --print-limit",
         "skipped", None),
        (0, "nothing at all", "check", False),
        (1, "Traceback\nValueError: oh", "check", False),
        (1, "========= Error: Device not supported. Please refer to the documentation", "skipped", None),
        (None, "========= COMPUTE-SANITIZER", "skipped", None),
        (None, "========= Invalid __shared__ write of size 4 bytes", "check", False),
    ],
)  # fmt: skip
def test_what_a_sanitizer_says(tmp_path, status, text, kind, passed):
    sanitizer.judge(Report(tmp_path / "r", 10, "memcheck"), "memcheck", status, text)
    (record,) = read(tmp_path / "r")
    assert record["kind"] == kind and record.get("passed") is passed
    if "kmeans_step+" in text:
        assert "kmeans_step" in record["detail"]
    if "cub::" in text:
        assert record["detail"] == "1 found in kernels that aren't ours"


def test_sanitizers_look_at_our_kernels_alone_where_others_don_t_matter():
    names = sanitizer.kernel_names()
    assert {"kmeans_step", "attention_half", "attention_float", "layernorm", "prepare_columns"} <= set(names)
    for tool in sanitizer.TOOLS:
        line = sanitizer.command("compute-sanitizer", tool)
        assert ("kne=attention_float" in line) == (tool != "initcheck")
        assert line[-2:] == ["-m", "bench.gpu.small"]


def test_no_sanitizer_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: None)
    sanitizer.racecheck(Report(tmp_path / "r", 10, "racecheck"), argparse.Namespace())
    (record,) = read(tmp_path / "r")
    assert record["kind"] == "skipped" and "isn't installed" in record["why"]


# --- The whole
# ----------------------------------------------------------------------------------------------------------


def scripted(monkeypatch, scripts: dict[str, str]):
    """Steps that are these programs; they find a report in `r`. Others do nothing."""

    def command(self, step, path, seconds):
        begin = f"from bench.gpu.report import Report; r = Report({str(path)!r}, 9, {step.name!r})\n"
        return [sys.executable, "-c", begin + scripts.get(step.name, "")]

    monkeypatch.setattr(gpu.Run, "_command", command)


@pytest.fixture
def few_steps(monkeypatch):
    chosen = tuple(step for step in STEPS if step.name in ("keys", "masks", "ceilings", "kmeans"))
    monkeypatch.setattr(gpu, "STEPS", chosen)


def test_the_rest_is_reported_whatever_one_step_does(cupy, few_steps, tmp_path, monkeypatch, capsys):
    timing = "from bench.gpu.measure import Timing\n"
    scripted(
        monkeypatch,
        {
            "keys": "r.check('keys in fp16', False, '0.5, at most 0.002')",
            "masks": "r.check('masks', True)\nprint('first')\nraise SystemExit('illegal memory access')",
            "ceilings": timing + "r.time({'ceiling': 'copy'}, 'copy', Timing(1, 1, 1, 3), rate=4e12)",
            "kmeans": timing
            + "case = {'rows': 1000000, 'width': 384, 'clusters': 8, 'dtype': 'fp32'}\n"
            + "for name, s in (('vitnp', 0.5), ('cupy', 0.97)):\n"
            + "    r.time(case, name, Timing(s, s, s, 3), rate=1.6e12 / s)\n"
            + "r.missing(case, 'cuML', 'No module named cuml')",
        },
    )
    assert gpu.main(["--out", str(tmp_path / "out")]) == gpu.EXIT_WRONG
    said = capsys.readouterr()
    assert "wrong: keys in fp16 (0.5, at most 0.002)" in said.err
    assert "masks runs to its end (exit status 1: illegal memory access)" in said.err
    assert "3200 GB/s, 80% of copy" in said.out and "cupy 1.94 x" in said.out and "cuML missing" in said.out
    assert "Made Up 9000" in said.out
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())
    judged = {bar["what"]: bar["met"] for bar in kept["bars"]}
    assert judged["k-means, 1,000,000 rows, fp32, K = 8: share of the copy's rate"] is True
    assert judged["k-means, 1,000,000 rows, fp32, K = 8: times as fast as CuPy's route"] is True  # within 3 % of 2
    assert judged["k-means, 1,000,000 rows, fp32, K = 27: share of the copy's rate"] is None
    assert kept["device"]["compute_capability"] == "9.0"
    assert "WRONG: keys in fp16" in (tmp_path / "out" / "gpu.txt").read_text()
    assert "first" in (tmp_path / "out" / "gpu.log").read_text()


def test_all_right_is_status_0_whatever_the_times(cupy, few_steps, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, {"keys": "r.check('keys', True)"})
    assert gpu.main(["--out", str(tmp_path)]) == 0
    assert "not measured" in capsys.readouterr().out


@pytest.mark.slow(reason="waits for a time limit")
def test_a_step_that_hangs_is_stopped_and_what_it_had_counts(cupy, few_steps, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "GRACE", 0.0)
    monkeypatch.setattr(gpu, "FEWEST_SECONDS", 0.5)
    scripted(monkeypatch, {"keys": "r.check('first keys', True)\nimport time\ntime.sleep(60)"})
    began = time.monotonic()
    assert gpu.main(["--out", str(tmp_path), "--seconds", "4", "--only", "keys"]) == 0
    assert time.monotonic() - began < 30
    said = capsys.readouterr().out
    assert "keys, the rest of it: stopped after" in said and "checks: 1 of 1 passed" in said


@pytest.mark.parametrize("asked, done", [([], 0), (["--compile"], 1), (["--only", "compiled"], 1)])
def test_torch_compile_is_left_out_unless_it_is_asked_for(cupy, tmp_path, monkeypatch, asked, done):
    monkeypatch.setattr(gpu, "STEPS", STEPS[-1:])
    scripted(monkeypatch, {"compiled": "r.check('compiled', True)"})
    assert gpu.main(["--out", str(tmp_path), *asked]) == 0
    kept = json.loads((tmp_path / "gpu.json").read_text())["records"]
    assert [record["name"] for record in kept] == ["compiled"] * done


def test_steps_without_time_left_are_on_record(cupy, few_steps, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, {})
    assert gpu.main(["--out", str(tmp_path), "--seconds", "1"]) == 0
    assert capsys.readouterr().out.count("out of time") >= 4


def test_kernels_that_cannot_be_compiled_end_it(cupy, few_steps, tmp_path, monkeypatch, capsys):
    scripted(
        monkeypatch,
        {"device": "r.check('a kernel can be compiled', False, 'CUDA header cuda_fp16.h is missing; run: …')"},
    )
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "cuda_fp16.h is missing" in capsys.readouterr().err


def test_without_cupy_or_a_gpu_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    from vitnp.kernels.cuda import loader

    monkeypatch.setattr(loader, "find_trouble", lambda: "CuPy isn't installed; run: pip install 'vitnp[cuda13]'")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "vitnp: error: CuPy isn't installed; run: pip install 'vitnp[cuda13]'\n"
    assert not (tmp_path / "out").exists()


def test_steps_name_functions_that_exist_and_fit_into_eight_minutes(cupy):
    for step in (FIRST, *STEPS):
        module, function = step.function.split(":")
        assert callable(getattr(importlib.import_module(f"bench.gpu.{module}"), function))
    for quick, most in ((False, gpu.MOST_SECONDS), (True, 250.0)):
        longest = max(gpu.seconds_of(step, quick) for step in STEPS if not step.timing)
        measured = [gpu.seconds_of(step, quick) for step in STEPS if step.timing and not step.extra]
        assert min(measured) > gpu.FEWEST_SECONDS
        assert longest + sum(measured) <= most
    assert STEPS[-1].extra and STEPS[-1].name == "compiled"
    assert gpu.MOST_SECONDS + gpu.GRACE < 480


def test_bars_of_masks_and_collections(tmp_path):
    """The largest difference has no tolerance; what was not measured says why."""
    report = Report(tmp_path / "r", 10, "masks")
    report.check("masks in fp32, 9 photographs", True, masks="fp32", apart=0.002)
    report.near("masks in fp16, 9 photographs", 0.00201, 0.002, masks="fp16", apart=0.00201)
    report = Report(tmp_path / "r", 10, "collection")
    for name, seconds in (("vitnp", 6.0), ("vitnp on 2 cores", 59.0)):
        timing, stages = Timing(seconds, seconds, seconds, 1), {"image level": seconds}
        report.time({"collection": 20_000, "patches": 9, "width": 8}, name, timing, rate=1.0, stages=stages)
    Report(tmp_path / "r", 10, "folder").skip("folder", "out of time")
    records = read(tmp_path / "r")
    verdicts = {bar.what.partition(":")[0]: bar.verdict for bar in bars.bars(records)}
    assert (verdicts["masks in fp32"], verdicts["masks in fp16"]) == ("met", "MISSED")
    assert verdicts["--levels all, 20,000 stored features"] == "met"
    text = table.text({"device": DEVICE}, records)
    assert "1 of folder: not measured (out of time)" in text
    assert "1 of attention: not measured (the step attention was not run)" in text
    assert "0.00201, at most 0.002: MISSED" in text and "image level 6" in text


def test_bars_are_met_within_three_percent():
    assert bars.Bar("", 200, 194.1).verdict == "met"
    assert bars.Bar("", 200, 193.9).verdict == "MISSED"
    assert bars.Bar("", 200, None).verdict == "not measured"


def test_the_table_shows_each_step(tmp_path):
    report = Report(tmp_path / "r", 10, "attention")
    report.time(
        {"images": 16, "tokens": 3601, "heads": 6, "dtype": "fp16"}, "vitnp", Timing(1e-3, 1e-3, 1e-3, 3), rate=3.2e14
    )
    report = Report(tmp_path / "r", 10, "network")
    facts = {"model": "ViT-S/8", "side": 480, "batch": 16, "tokens": 3601, "dtype": "fp16", "want": "key"}
    for name, seconds in (("vitnp", 0.02), ("torch, eager", 0.019)):
        report.time(facts, name, Timing(seconds, seconds, seconds, 3), rate=16 / seconds)
    report.time(facts, "torch, compiled", Timing(0.03, 0.03, 0.03, 3), ours=0.02)
    report = Report(tmp_path / "r", 10, "folder")
    report.time(
        {"photographs": 9, "size": [500, 375], "device": "cuda", "cores": 2}, "vitnp", Timing(0.1, 0.1, 0.1, 1), rate=10
    )
    report.skip("masks", "out of time")
    device = {"name": "X", "multiprocessors": 3, "memory_gib": 1.0, "l2_mib": 60, "driver": "1", "cuda": "13.0"}
    text = table.text({"device": device}, read(tmp_path / "r"))
    assert "320 TFLOP/s" in text and "800.0 images/s" in text and "10.0 images/s" in text
    assert "torch, eager 0.95 x" in text and "torch, compiled 1.50 x" in text
    assert "not done: masks: out of time" in text
    verdicts = {bar.what: bar.met for bar in bars.bars(read(tmp_path / "r"))}
    assert verdicts["attention, 16 x 3601 tokens, fp16: TFLOP/s"] is True
    assert verdicts["ViT-S/8, 480 px, batch 16, keys in fp16: times as fast as torch, eager"] is False

"""The benchmark harness, with a simulated clock: rounds, medians, disturbed samples, bars, tables, plots."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import sys
import threading
import time

import numpy as np
import pytest

# bench/ is not installed. It is appended, so that an installed vitnp stays the one that is tested.
sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from vitnp.kernels import reference as k

from bench import journey, record, table
from bench.__main__ import BENCHMARKS, main
from bench.cpu import comparison, crf_peers, interleave, kmeans_peers, peak, pipeline_peer, plots, vit_peers
from bench.cpu.comparison import Bar, Missing, WrongAnswer, compare
from bench.cpu.interleave import Clock, Disturbed, Plan, Timing
from vitnp.errors import UsageError
from vitnp.method.cleaning import clean
from vitnp.vit.config import ViTConfig


class Machine:
    """A simulated machine: time passes in calls and sleeps, while another program may use the other core."""

    def __init__(self, busy=lambda machine: 0.0):
        self.time, self.theirs, self.log, self._busy = 0.0, 0.0, [], busy
        self.clock = Clock(lambda: self.time, self.pass_, lambda: self.theirs)

    def pass_(self, seconds):
        self.theirs += seconds * self._busy(self)
        self.time += seconds

    def work(self, name, seconds, *, returns=None):
        """Return a call that takes a number of seconds, which may be a function of the number of earlier calls."""
        calls = []

        def call():
            calls.append(name)
            self.log.append(name)
            self.pass_(seconds(len(calls) - 1) if callable(seconds) else seconds)
            return returns

        return call


def agree(name, answer):
    pass


# --- Rounds and medians ----------------------------------------------------------------------------------------------


def test_contenders_take_turns_and_rounds_rotate():
    machine = Machine()
    contenders = {name: machine.work(name, 1.0) for name in "abc"}
    interleave.interleave(contenders, Plan(rounds=4, min_seconds=0.5), machine.clock)
    rounds = machine.log[3:]  # after the call each that tells how long it takes
    assert "".join(rounds) == "abcbcacababc"


def test_fast_calls_are_repeated_within_a_sample():
    machine = Machine()
    timings = interleave.interleave(
        {"a": machine.work("a", 0.03), "b": machine.work("b", 2.0)}, Plan(3, 0.3), machine.clock
    )
    assert timings["a"].calls == 10 and timings["b"].calls == 1
    assert timings["a"].seconds == pytest.approx(0.03)
    assert machine.log.count("a") == 1 + 3 * 10


def test_seconds_are_the_median_of_the_samples():
    machine = Machine()
    slow_once = machine.work("a", lambda call: 9.0 if call == 2 else 1.0 + 0.1 * call)
    timing = interleave.interleave({"a": slow_once}, Plan(5, 0.5), machine.clock)["a"]
    assert timing.samples == pytest.approx((1.1, 9.0, 1.3, 1.4, 1.5))
    assert timing.seconds == pytest.approx(1.4)


def test_the_budget_ends_the_rounds_after_three():
    machine = Machine()
    timing = interleave.interleave({"a": machine.work("a", 10.0)}, Plan(rounds=9, budget=5.0), machine.clock)["a"]
    assert len(timing.samples) == 3


def test_a_ratio_is_taken_within_rounds():
    # The machine is three times slower in the middle, for both: medians over all rounds apart would say 2 / 1.2.
    ours, theirs = Timing((1.0, 3.6, 1.2)), Timing((2.0, 7.2, 1.8))
    assert interleave.ratio(ours, theirs) == pytest.approx(2.0)
    assert interleave.ratio(Timing((1.0, None, None, 1.0)), Timing((2.0, 2.0, 2.0, None))) is None


def test_times_are_given_per_step():
    machine = Machine()
    contenders = {"a": lambda: machine.work("a", 5.0), "b": lambda: machine.work("b", 10.0)}
    found = compare("c", {}, contenders, [Bar("a", "b")], Plan(3, 0.5), check=agree, steps=20, clock=machine.clock)
    assert found["contenders"]["a"]["seconds"] == pytest.approx(0.25)
    assert found["comparisons"][0]["ratio"] == pytest.approx(2.0)


# --- Disturbed samples -----------------------------------------------------------------------------------------------


def test_a_disturbed_sample_is_repeated():
    machine = Machine(lambda machine: 1.0 if 2.9 < machine.time < 4.0 else 0.0)
    timing = interleave.interleave({"a": machine.work("a", 1.0)}, Plan(rounds=5, min_seconds=0.5), machine.clock)["a"]
    assert timing.disturbed == 1 and len(timing.clean) == 5
    assert timing.foreign <= interleave.SLACK + interleave.SLACK_SHARE


def test_a_small_disturbance_is_accepted():
    machine = Machine(lambda machine: 0.05)
    timing = interleave.interleave({"a": machine.work("a", 1.0)}, Plan(3), machine.clock)["a"]
    assert timing.disturbed == 0 and timing.foreign == pytest.approx(0.05)


def test_a_busy_machine_raises():
    machine = Machine(lambda machine: 0.5)
    with pytest.raises(
        Disturbed, match="other programs disturbed 12 samples of slow, which leaves 0 of 3 rounds; .*--anyway"
    ):
        interleave.interleave({"slow": machine.work("slow", 1.0)}, Plan(3), machine.clock)


def test_a_busy_machine_leaves_a_case_unmeasured():
    machine = Machine(lambda machine: 0.5)
    builders = {"vitnp": lambda: machine.work("a", 1.0), "peer": lambda: machine.work("b", 1.0)}
    found = compare("the case", {}, builders, [Bar("vitnp", "peer", 1.0)], Plan(3), check=agree, clock=machine.clock)
    assert "other programs" in found["unmeasured"] and found["contenders"] == {} and found["comparisons"] == []
    assert "not measured" in table.lines(found)[0]
    assert "1 of 1 cases not measured" in table.ending([found])


def test_a_round_disturbed_for_one_contender_counts_for_none():
    # Others compute for as long as b is tried in the first round: all of its four attempts are in vain.
    machine = Machine(lambda machine: float(len(machine.log) in range(4, 8)))
    plan = Plan(rounds=5, min_seconds=0.5, budget=0.0)
    timings = interleave.interleave({name: machine.work(name, 1.0) for name in "ab"}, plan, machine.clock)
    assert timings["b"].samples[0] is None and timings["a"].samples[0] == pytest.approx(1.0)
    assert len(timings["a"].samples) == 4  # three clean rounds are needed, however little time there is
    assert interleave.ratio(timings["a"], timings["b"]) == pytest.approx(1.0)


def test_disturbed_samples_can_be_kept_and_are_counted():
    machine = Machine(lambda machine: 0.5)
    plan = Plan(3, keep_disturbed=True)
    timing = interleave.interleave({"a": machine.work("a", 1.0)}, plan, machine.clock)["a"]
    assert timing.disturbed == 3 and timing.foreign == pytest.approx(0.5) and timing.seconds == pytest.approx(1.0)


def test_without_proc_stat_the_record_has_no_foreign_cores():
    machine = Machine()
    clock = Clock(machine.clock.now, machine.clock.sleep, lambda: None)
    found = compare("c", {}, {"a": lambda: machine.work("a", 1.0)}, [], Plan(3), check=agree, clock=clock)
    assert found["contenders"]["a"]["foreign_cores"] is None and found["contenders"]["a"]["rounds"] == 3


@pytest.mark.skipif(not pathlib.Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_own_processor_time_is_not_foreign():
    before, began, own = interleave.used_by_others(), time.perf_counter(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    others, wall = interleave.used_by_others() - before, time.perf_counter() - began
    # Others may do what they like on the rest of the machine, and no more than that; the kernel counts in steps of 10
    # ms.
    assert -0.1 < others < os.cpu_count() * wall - 0.3 + 0.1


# --- Comparisons -----------------------------------------------------------------------------------------------------


def two(ours, theirs, bars, **options):
    machine = Machine()
    builders = {"vitnp": lambda: machine.work("vitnp", ours), "peer": lambda: machine.work("peer", theirs)}
    return compare("the case", {"n": 7}, builders, bars, Plan(3, 0.5), check=agree, clock=machine.clock, **options)


@pytest.mark.parametrize(("measured", "expected"), [(2.5, True), (2.0, True), (1.95, True), (1.93, False)])
def test_a_bar_is_met_within_three_per_cent(measured, expected):
    found = two(1.0, measured, [Bar("vitnp", "peer", 2.0, stretch=2.4)])["comparisons"][0]
    assert found["ratio"] == pytest.approx(measured) and found["met"] is expected
    assert found["stretch_met"] is (measured == 2.5)
    assert ("NOT met" in table.verdict(found)) is not expected


def test_the_record_holds_the_case_and_how_it_was_measured():
    work = {"vitnp": {"flops": 3e9, "peak": 5e9}}
    found = two(1.0, 2.0, [Bar("vitnp", "peer")], work=work)
    assert found["n"] == 7 and found["missing"] == {}
    facts = found["contenders"]["vitnp"]
    assert facts["seconds"] == 1.0 and facts["rounds"] == 3 and facts["foreign_cores"] == 0.0
    assert facts["peak_fraction"] == 0.6 and "peak_fraction" not in found["contenders"]["peer"]
    assert found["comparisons"][0]["met"] is None
    json.dumps(found)


def test_a_missing_peer_is_reported_in_record_and_table():
    machine = Machine()

    def absent():
        import a_package_of_no_name  # noqa: F401

    def unable():
        raise Missing("this processor has no AVX512-BF16")

    builders = {"vitnp": lambda: machine.work("vitnp", 1.0), "peer": absent, "vitnp, bf16": unable}
    bars = [Bar("vitnp", "peer", 2.0), Bar("vitnp, bf16", "peer")]
    found = compare("the case", {}, builders, bars, Plan(3), check=agree, clock=machine.clock)
    assert found["missing"] == {
        "peer": "a_package_of_no_name isn't installed; pip install '.[bench]'",
        "vitnp, bf16": "this processor has no AVX512-BF16",
    }
    assert [(judged["ratio"], judged["met"]) for judged in found["comparisons"]] == [(None, None)] * 2
    text = "\n".join(table.lines(found))
    assert "missing" in text and "a_package_of_no_name" in text and "AVX512-BF16" in text
    assert table.ending([found]) == "\n0 of 0 bars met; missing: peer, vitnp, bf16"


def test_a_wrong_answer_raises_before_anything_is_timed():
    machine = Machine()
    builders = {
        "right": lambda: machine.work("right", 1.0, returns=1),
        "wrong": lambda: machine.work("wrong", 1.0, returns=2),
    }

    def check(name, answer):
        if answer != 1:
            raise WrongAnswer(f"{name} computes something else")

    with pytest.raises(WrongAnswer, match="wrong computes something else"):
        compare("c", {}, builders, [], Plan(3), check=check, clock=machine.clock)
    assert machine.log == ["right", "wrong"]


def test_the_geometric_mean_is_over_the_cases_that_have_the_ratio():
    bar = Bar("vitnp", "peer", 1.5)
    cases = [two(1.0, ratio, [bar]) for ratio in (1.0, 4.0)]
    cases.append({"comparisons": [{"ours": "vitnp", "theirs": "peer", "ratio": None, "bar": 1.5, "met": None}]})
    found = comparison.geometric_mean(cases, bar, "of all")
    assert found["ratio"] == pytest.approx(2.0) and found["met"] is True and found["cases"] == 2
    assert comparison.geometric_mean([], bar, "of none")["met"] is None


# --- Checks of the contenders ----------------------------------------------------------------------------------------


def test_different_tokens_raise():
    tokens = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    vit_peers.check_tokens("peer", tokens * np.float32(1 + 1e-6), tokens)
    vit_peers.check_tokens("peer", tokens * np.float32(1.01), tokens, precision="bf16")
    for wrong in (tokens * np.float32(1.01), np.where(tokens == tokens[0, 0, 0], np.nan, tokens), tokens[:, :4]):
        with pytest.raises(WrongAnswer, match="^peer"):
            vit_peers.check_tokens("peer", wrong, tokens)


def test_vitnp_computes_the_network_of_the_peers():
    # A hand-written pass in float64 from the same weights, by the definition of a pre-norm block.
    config = ViTConfig(width=24, depth=2, heads=3, patch=4, grid=(2, 3))
    weights = vit_peers.random_weights(config)
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 12)).astype(np.float32)
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    flat = images.reshape(2, 3, 2, 4, 3, 4).transpose(0, 2, 4, 1, 3, 5).reshape(2, 6, 48)
    x = flat @ w["patch_embed.proj.weight"].reshape(24, 48).T + w["patch_embed.proj.bias"]
    x = np.concatenate([np.tile(w["cls_token"], (2, 1, 1)), x], axis=1) + w["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        y = k.layernorm(x, w[f"{block}.norm1.weight"], w[f"{block}.norm1.bias"], config.eps)
        qkv = (y @ w[f"{block}.attn.qkv.weight"].T + w[f"{block}.attn.qkv.bias"]).reshape(2, 7, 3, 3, 8)
        q, key, v = qkv.transpose(2, 0, 3, 1, 4)
        attention = k.softmax(q @ key.swapaxes(-1, -2) / 8**0.5)
        y = (attention @ v).transpose(0, 2, 1, 3).reshape(2, 7, 24)
        x = x + y @ w[f"{block}.attn.proj.weight"].T + w[f"{block}.attn.proj.bias"]
        y = k.layernorm(x, w[f"{block}.norm2.weight"], w[f"{block}.norm2.bias"], config.eps)
        y = k.gelu(y @ w[f"{block}.mlp.fc1.weight"].T + w[f"{block}.mlp.fc1.bias"])
        x = x + y @ w[f"{block}.mlp.fc2.weight"].T + w[f"{block}.mlp.fc2.bias"]
    x = k.layernorm(x, w["norm.weight"], w["norm.bias"], config.eps)
    vit_peers.check_tokens("vitnp", vit_peers.ours(config, weights)(images), x[:, 1:].astype(np.float32))


def test_flops_of_a_forward_pass():
    # Two blocks on 1 + 4 tokens of width 8 with an MLP of 32: by hand.
    class Tiny(vit_peers.Case):
        config = ViTConfig(width=8, depth=2, heads=2, patch=2, grid=(2, 2))

    linear = 5 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
    attention = 2 * 5 * 5 * 8
    assert Tiny("S", 2, 4, batch=3).flops == 3 * 2 * (4 * 12 * 8 + 2 * (linear + attention))


def test_the_peak_loop_does_its_multiply_adds():
    run, operations, _engine = peak.loop("fp32")
    sums = peak.SUMS * peak.lanes()
    assert run(1000) == pytest.approx(sums * (1 - 0.999**1000), rel=1e-4)
    assert operations == 2 * sums


def test_worse_centroids_raise():
    rows = kmeans_peers.rows_of(300, 16)
    start = rows[kmeans_peers.chosen_rows(300, 3)]
    moved = np.stack(
        [rows[labels == cluster].mean(axis=0) for labels in [nearest(rows, start)] for cluster in range(3)]
    )
    check = kmeans_peers.checker(rows)
    check("first", moved)
    check("second", moved + np.float32(1e-7))
    with pytest.raises(WrongAnswer, match="^third ends at an inertia"):
        check("third", start)
    assert kmeans_peers.inertia(rows, start) == pytest.approx(
        np.square(rows[:, None] - start).astype(np.float64).sum(axis=2).min(axis=1).sum(), rel=1e-5
    )


def test_vitnp_does_lloyds_iterations():
    rows = kmeans_peers.rows_of(500, 12)
    start = expected = rows[kmeans_peers.chosen_rows(500, 4)]
    for _ in range(3):
        labels = nearest(rows, expected)
        expected = np.stack([rows[labels == cluster].mean(axis=0, dtype=np.float64) for cluster in range(4)])
    np.testing.assert_allclose(kmeans_peers.ours(rows, start, 1)(3), expected, atol=1e-5)


def nearest(rows, centroids):
    return np.square(rows[:, None].astype(np.float64) - centroids).sum(axis=2).argmin(axis=1)


def test_different_labels_raise():
    marginals = np.moveaxis(crf_peers.probabilities(3, 40, 60), -1, 0)
    check = crf_peers.checker()
    check("first", marginals)
    check("second", marginals * 0.99)
    with pytest.raises(WrongAnswer, match="^third labels"):
        check("third", np.roll(marginals, 1, axis=0))


def test_the_assembled_pipeline_cleans_as_vitnp_does():
    for seed in range(5):
        score = np.random.default_rng(seed).random((14, 19))
        score = (score + np.roll(score, 1, 0) + np.roll(score, 1, 1)) / 3
        np.testing.assert_array_equal(pipeline_peer.clean(score), clean(score))


# --- Tables and plots ------------------------------------------------------------------------------------------------


def stored(tmp_path, section, cases):
    path = tmp_path / f"cpu_{section}.json"
    path.write_text(json.dumps({"date": "2026-01-01", "machine": record.machine(), "section": section, "cases": cases}))
    return path


def contenders(**seconds):
    return {name.replace("_", " "): {"seconds": value, "peak_fraction": 0.5} for name, value in seconds.items()}


PICTURED = {
    "vit": [
        {
            "model": "ViT-S/16",
            "batch": 1,
            "tokens": tokens,
            "contenders": contenders(vitnp=tokens / 1e4, OpenVINO=tokens / 9e3),
        }
        for tokens in (197, 785, 901, 3601)
    ],
    "kmeans": [
        {
            "rows": rows,
            "width": 384,
            "clusters": clusters,
            "contenders": contenders(vitnp=rows * 1e-7, faiss=rows * 4e-7),
        }
        for rows in (3_600, 100_000)
        for clusters in (2, 8)
    ],
    # One contender is missing in one case.
    "crf": [
        {"classes": 2, "contenders": contenders(vitnp=0.1, pydensecrf2=0.2)},
        {"classes": 21, "contenders": contenders(vitnp=0.5)},
    ],
    "photograph": [
        {"process": process, "contenders": contenders(vitnp=0.1, assembled=0.4)} for process in ("warm", "cold")
    ],
}


@pytest.mark.parametrize("section", PICTURED)
def test_a_result_file_is_plotted(tmp_path, section):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra for benchmarks")
    from PIL import Image

    path = plots.draw(stored(tmp_path, section, PICTURED[section]), tmp_path / "pictures")
    assert path == tmp_path / "pictures" / f"cpu_{section}.png" and path.stat().st_size < 60_000
    with Image.open(path) as picture:
        shown = np.asarray(picture.convert("RGB"))
    ours = np.array([0xC8, 0x10, 0x2E])
    assert shown.shape[1] > 600 and (np.abs(shown.astype(int) - ours).max(axis=2) < 30).sum() > 100


def test_a_result_that_cannot_be_plotted_raises(tmp_path):
    with pytest.raises(UsageError, match="can't be plotted; plot a result of vit, kmeans, crf, photograph"):
        plots.draw(stored(tmp_path, "quality", []), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UsageError, match="can't be read as a result"):
        plots.draw(tmp_path / "broken.json", tmp_path)


def test_the_table_has_one_line_per_contender():
    lines = table.lines(two(0.0123, 0.0246, [Bar("vitnp", "peer", 1.9)]))
    assert [" ".join(line.split()) for line in lines] == ["the case vitnp 12.3 ms", "peer 24.6 ms 2.00 x, bar 1.9: met"]
    assert len({line.index("ms") for line in lines}) == 1


# --- Command line and the count of functions --------------------------------------------------------------------------


def test_every_benchmark_is_listed_and_exists(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name, benchmark in BENCHMARKS.items():
        assert f"  {name} " in listed and importlib.util.find_spec(benchmark.module)
    assert main(["no-such-benchmark"]) == 2
    assert "NAME must be one of photograph" in capsys.readouterr().err


def test_functions_are_counted_by_file_and_name_in_all_threads():
    def call():
        thread = threading.Thread(target=table.duration, args=(1.0,))
        thread.start()
        thread.join()
        if not earlier:
            table.verdict({"ratio": None})
        earlier.append(True)

    earlier = []
    root = pathlib.Path(table.__file__).parent.parent
    first, second = (journey.project_functions(codes, root, rooms=("bench",)) for codes in journey.trace(call))
    assert list(first["bench/table.py"]) == ["duration", "verdict"] and list(second["bench/table.py"]) == ["duration"]
    assert journey.count(second) == "1 / 1"


@pytest.mark.slow(reason="runs the command line on a photograph")
def test_journey_counts_a_command(capfd):
    assert main(["journey", "one"]) == 0
    assert "segment coffee.jpg" in capfd.readouterr().out

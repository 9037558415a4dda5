"""The benchmark of folders: ratios, verdicts, the deadline, and the peer's network."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent))

from bench.scale import folders
from bench.scale.folders_table import Contender, Sample, summarize, table, verdicts


def contender(count: int, *seconds: float) -> Contender:
    return Contender(lambda: Sample(1.0, 1.0), count, [Sample(each, 2 * each) for each in seconds])


def test_ratios_are_of_the_same_round_and_of_one_photograph():
    found = {
        "vitnp": contender(10, 1, 3, 2),
        "against": contender(10, 2, 6, 4),
        "assembled": contender(2, 0.8, 2.4, 1.6),
    }
    results = {"one by one": summarize(found)}
    assert results["one by one"]["against"]["times_vitnp"] == 2
    assert results["one by one"]["assembled"]["times_vitnp"] == 4
    assert results["one by one"]["assembled"]["photographs_per_second"] == 1.25
    assert "| one by one | 5 (1.00) | 5" not in table(results) and "2.5 (2.00)" in table(results)


def test_bars_are_met_or_missed():
    found = {
        "vitnp": contender(1, 10),
        "against": contender(1, 14),
        "network": contender(1, 9),
        "u2netp": Contender(lambda: Sample(1, 1), 1),
    }
    lines = verdicts({"one by one": summarize(found)}, {"one by one": 0.0})
    assert [word in line for word, line in zip(("MISSED, 1.40 x", "met, 1.11 x", "0.0000%"), lines)] == [True] * 3


def test_an_empty_case_is_unfinished():
    assert verdicts({"one by one": summarize({"vitnp": contender(4)})}, {"one by one": None}) == [
        "one by one: UNFINISHED"
    ]


def test_no_run_is_started_that_would_end_after_the_deadline(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(folders.time, "monotonic", lambda: clock[0])

    def run() -> Sample:
        clock[0] += 10
        return Sample(10, 10)

    one = {"a case": {"vitnp": Contender(run, 1)}}
    assert folders._run_rounds(one, 2, deadline=25)
    assert not folders._run_rounds(one, 2, deadline=25) and clock[0] == 20


def test_the_other_method_has_the_published_size():
    pytest.importorskip("onnx")
    from bench.scale.u2netp import u2netp

    content, n_parameters = u2netp()
    # 1,131,181 with the two numbers per channel of batch normalization, of which bias and weights have taken one each.
    assert n_parameters + 2 * 2848 == 1_131_181 and len(content) > 4 * n_parameters

"""The ablation table: every row against a run that is set up for that row alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evaluate.test_evaluate import discs
from vitnp.cli import evaluate
from vitnp.evaluate.ablation import ablate
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.evaluate.saliency import score_set
from vitnp.method.cleaning import clean
from vitnp.refine.refine import refine
from vitnp.segmenter import Segmenter


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("ablation"), 6)


@pytest.fixture(scope="module")
def table(folders, tmp_path_factory, builtin):
    cache = tmp_path_factory.mktemp("cache")
    pairs, _ = match_pairs(*folders)
    rows, images, failures = ablate(pairs, lambda **variant: Segmenter(builtin, short_side=96, cache=cache, **variant))
    assert images == 6 and not failures
    return {row[:2]: (row.coarse, row.refined) for row in rows}


@pytest.mark.slow(reason="fits a collection per variant")
def test_rows_and_their_order(table):
    assert list(table) == [
        *(("levels", name) for name in ("image", "data set", "category", "readout")),
        *(("levels", name) for name in ("image + data set", "image + category", "data set + category")),
        *(("levels", name) for name in ("image + data set + category", "all")),
        *(("consistency", how) for how in ("mean", "majority", "intersection")),
        *(("facet", name) for name in ("key", "query", "value", "token")),
    ]  # fmt: skip
    assert table["levels", "all"] == table["consistency", "mean"] == table["facet", "key"]
    assert all(0 <= value <= 1 for row in table.values() for value in row)


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (("levels", "all"), {}),
        (("levels", "image + data set + category"), {"readout": None}),
        (("consistency", "majority"), {"consistency": "majority"}),
        (("consistency", "intersection"), {"consistency": "intersection"}),
        (("facet", "query"), {"facet": "query"}),
        (("facet", "value"), {"facet": "value"}),
        (("facet", "token"), {"facet": "token"}),
    ],
)
def test_full_methods_score_as_in_an_evaluation(table, folders, builtin, row, options):
    pairs, _ = match_pairs(*folders)
    for place, method in enumerate(("none", "solver")):
        alone = score_set(pairs, Segmenter(builtin, short_side=96, refine=method, **options))
        assert table[row][place] == pytest.approx(alone.scores["iou"], abs=1e-12)


def test_subsets_of_levels(table, folders, builtin):
    """Their means taken here, from what each level said."""
    pairs, _ = match_pairs(*folders)
    found = {}
    Segmenter(builtin, short_side=96).fit([pair.image for pair in pairs], observe=found.__setitem__)
    parts = {"image": [0], "category": [2], "readout": [3], "image + data set": [0, 1], "data set + category": [1, 2]}
    for name, taken in parts.items():
        scores = []
        for index, pair in enumerate(pairs):
            result = found[index]
            truth = read_truth(pair.mask, result.mask.shape)
            mean = sum(result.levels[level].astype(np.float64) for level in taken) / len(taken)
            score = clean(mean.astype(np.float32).reshape(result.score.shape))
            mask = refine(score, result.image) >= 32768
            scores.append(np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth))
        assert table["levels", name][1] == pytest.approx(np.mean(scores), abs=1e-12)
    # The levels differ, so the rows do.
    assert len({table["levels", name] for name in parts}) > 1


@pytest.mark.slow(reason="evaluates every variant")
def test_the_command(table, folders, builtin, capsys, tmp_path):
    argv = [*folders, "--ablate", "--size", "96", "--quiet", "--csv", str(tmp_path / "table.csv")]
    assert evaluate.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 6
    assert {(row["group"], row["name"]): (row["coarse"], row["refined"]) for row in result["rows"]} == table
    assert evaluate.main([*argv, "--threads", "3"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["vary", "to", "cleaned", "+", "solver"]
    assert [line.split()[-2:] for line in lines] == [[f"{value:.4f}" for value in row] for row in table.values()]
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 17


@pytest.mark.slow(reason="evaluates every variant")
def test_failed_photographs_count_in_no_row(folders, builtin, tmp_path, capsys):
    import shutil

    for part in ("images", "masks"):
        shutil.copytree(f"{folders[0]}/../{part}", tmp_path / part)
    (tmp_path / "masks" / "3.png").write_bytes(b"")
    argv = [str(tmp_path / "images"), str(tmp_path / "masks"), "--ablate", "--size", "96", "--seeds", "2"]
    assert evaluate.main([*argv, "--json"]) == 3
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["images"] == 5 and set(result["rows"][0]["deviation"]) == {"coarse", "refined"}
    assert "1 of 6 failed" in captured.err

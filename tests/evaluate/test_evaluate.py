"""The evaluation: its loop, its command, and the whole of it on real weights."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types

import numpy as np
import pytest
from PIL import Image

from vitnp.cli import arguments, evaluate
from vitnp.cli import shared as shared_
from vitnp.cli.shared import EXIT_SOME_FAILED
from vitnp.errors import ImageError, UsageError
from vitnp.evaluate import saliency
from vitnp.evaluate.data.pairs import Pair, match_pairs, read_truth
from vitnp.evaluate.metrics.saliency import SaliencyScores, accuracy, boundary_f, iou, mae, max_f_beta, s_measure
from vitnp.evaluate.saliency import mean_scores, score_pair, score_pairs
from vitnp.io.decode import read_image
from vitnp.segmenter import Segmenter

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent
KEYS = ["images", "iou", "accuracy", "max_f", "mae", "s_measure", "boundary_f"]


def by_red_channel(image, vit=None, **options):
    """Stands in for the method: what is red is foreground."""
    rgb = read_image(image)
    soft = rgb[..., 0].astype(np.uint16) * np.uint16(257)
    return types.SimpleNamespace(mask=soft >= 32768, soft=soft)


@pytest.fixture
def red(monkeypatch):
    """Replace network and method by the red channel, so that scores can be worked out by hand."""
    monkeypatch.setattr(saliency, "segment_image", by_red_channel)
    monkeypatch.setattr(arguments, "load_model", lambda args: types.SimpleNamespace(device="cpu"))
    monkeypatch.setattr(arguments, "load_collection", lambda *args, **options: None)


def save_pair(folder, name, soft, truth):
    """Photograph whose red channel is `soft` (0 to 255), and its mask."""
    soft = np.asarray(soft, np.uint8)
    for part in ("images", "masks"):
        (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([soft, soft * 0, soft * 0], axis=2)).save(folder / "images" / f"{name}.png")
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def two(tmp_path, red):
    """Two photographs: one perfect, one whose scores are 1/2, 3/4, ...; the arguments of the command."""
    save_pair(tmp_path, "perfect", [[255, 0], [255, 0]], [[1, 0], [1, 0]])
    # Mask ## / .., truth #. / ..: IoU 1/2, accuracy 3/4. Soft 1, 0.6, 0, 0: MAE 0.6/4 = 0.15, and a cut above 0.6 is
    # perfect: F = 1.
    save_pair(tmp_path, "in/half", [[255, 153], [0, 0]], [[1, 0], [0, 0]])
    return [str(tmp_path / "images"), str(tmp_path / "masks")]


# S-measure of the second photograph. Object: foreground 1; background's complements 0.4, 1, 1, mean 0.8, sample
# deviation sqrt(0.24 / 2) = 0.346410, so 1.6 / (0.64 + 1 + 0.346410) = 0.805468; 1/4 + 3/4 * 0.805468 = 0.854101.
# Region: the centroid is the first pixel; its block and the two below are constant: 1; upper right: one pixel, 1. So
# (0.854101 + 1) / 2.
S_HALF = (0.25 + 0.75 * 1.6 / (1.64 + 0.12**0.5) + 1) / 2


def test_means_worked_by_hand(two, capsys):
    assert evaluate.main(["--task", "saliency", *two, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result = json.loads(out)
    assert list(result) == [*KEYS, "device"]
    assert result["images"] == 2 and set(result["device"].values()) == {"cpu"}
    assert result["iou"] == 0.75
    assert result["accuracy"] == 0.875
    assert result["max_f"] == 1.0
    assert result["mae"] == pytest.approx(0.075, abs=1e-7)
    assert result["s_measure"] == pytest.approx((1 + S_HALF) / 2, abs=1e-7)
    assert result["boundary_f"] == 1.0  # everything is within 3 pixels


def test_the_printed_table(two, capsys):
    assert evaluate.main(two) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        "2",
        "0.7500",
        "0.8750",
        "1.0000",
        "0.0750",
        f"{(1 + S_HALF) / 2:.4f}",
        "1.0000",
    ]
    assert len({len(line) for line in lines}) == 1
    assert "IoU" in lines[1] and "S-measure" in lines[-2]


def test_a_quiet_run_prints_only_the_result(two, capsys):
    assert evaluate.main([*two, "--quiet", "--json"]) == 0
    assert capsys.readouterr().err == ""


def test_unused_masks_are_mentioned(two, capsys):
    Image.new("L", (2, 2)).save(pathlib.Path(two[1]) / "extra.png")
    assert evaluate.main(two) == 0
    assert "ignoring masks without a photograph: 1, such as" in capsys.readouterr().err
    assert evaluate.main([*two, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_broken_files_are_skipped_and_listed(two, tmp_path, capsys):
    save_pair(tmp_path, "a_broken", [[255, 0], [255, 0]], [[1, 0], [1, 0]])
    (tmp_path / "images" / "a_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    save_pair(tmp_path, "no_mask", [[255, 0], [255, 0]], [[1, 0], [1, 0]])
    (tmp_path / "masks" / "no_mask.png").write_bytes(b"nonsense")
    save_pair(tmp_path, "other_size", [[255, 0], [255, 0]], [[1, 0], [1, 0]])
    Image.new("L", (7, 5)).save(tmp_path / "masks" / "other_size.png")
    assert evaluate.main([*two, "--json", "--threads", "3"]) == EXIT_SOME_FAILED
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert list(result) == [*KEYS, "device"]
    assert result["images"] == 2 and result["iou"] == 0.75
    assert "3 of 5 failed" in captured.err
    assert "Traceback" not in captured.err
    for words in ("images/a_broken.png: ", "masks/no_mask.png: ", "other_size.png: the mask has 7 x 5 pixels"):
        assert words in captured.err
    assert "its photograph has 2 x 2" in captured.err


def test_nothing_scored_is_status_2_and_prints_no_result(tmp_path, red, capsys):
    save_pair(tmp_path, "a", [[0]], [[0]])
    (tmp_path / "masks" / "a.png").write_bytes(b"")
    status, captured = run_face([str(tmp_path / "images"), str(tmp_path / "masks"), "--json"], capsys)
    assert status == 2
    assert captured.out == ""
    assert "a.png" in captured.err and "none of the 1 photographs could be scored" in captured.err


def run_face(argv, capsys):
    """Exit status and output of the command as the shell would see them."""
    with pytest.raises(SystemExit) as exit_:
        shared_.run(lambda _: evaluate.main(argv))
    return exit_.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "IMAGES and MASKS"),
        (["only_one"], "MASKS"),
        (["nowhere", "."], "nowhere: there is no such folder; name the one that holds the photographs"),
        (["--task", "everything", ".", "."], "must be one of saliency, semantic or discovery, got 'everything'"),
        (["--threads", "0", ".", "."], "must be a whole number of at least 1, got '0'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, captured = run_face(argv, capsys)
    assert status == 2
    assert words in captured.err
    assert captured.err.count("\n") == 1 and captured.err.startswith("vitnp: error: ")
    assert captured.out == ""


def test_an_error_of_all_photographs_is_reported_once(two, monkeypatch, capsys):
    def refuse(image, vit=None, **options):
        raise UsageError("the stride 99 is too large; choose less")

    monkeypatch.setattr(saliency, "segment_image", refuse)
    for threads in ("1", "2"):
        status, captured = run_face([*two, "--threads", threads], capsys)
        assert status == 2
        assert captured.err == "vitnp: error: the stride 99 is too large; choose less\n"


def test_help_and_version(capsys):
    for argv, words in ((["--help"], "IMAGES MASKS"), (["--version"], "vitnp 0.")):
        with pytest.raises(SystemExit) as exit_:
            evaluate.main(argv)
        assert exit_.value.code == 0
        assert words in capsys.readouterr().out


def test_options_reach_the_method(two, monkeypatch):
    seen = []

    def record(image, vit=None, **options):
        seen.append(options)
        return by_red_channel(image)

    monkeypatch.setattr(saliency, "segment_image", record)
    assert (
        evaluate.main([*two, "--size", "160", "--facet", "value", "--refine", "none", "--seed", "7", "--stride", "8"])
        == 0
    )
    assert len(seen) == 2
    for options in seen:
        expected = {"short_side": 160, "facet": "value", "refine": "none", "seed": 7, "stride": 8}
        assert options.items() >= expected.items()


# The loop.


def random_pairs(folder, count):
    random = np.random.default_rng(1)
    for i in range(count):
        shape = tuple(random.integers(3, 30, size=2))
        save_pair(folder, f"{i:03d}", random.integers(0, 256, shape), random.random(shape) < 0.4)
    return match_pairs(folder / "images", folder / "masks")[0]


def test_scores_are_those_of_the_metrics(tmp_path, red):
    pairs = random_pairs(tmp_path, 4)
    for pair, scores in zip(pairs, score_pairs(pairs, n_threads=1)):
        result = by_red_channel(pair.image)
        truth = read_truth(pair.mask, result.mask.shape)
        soft = result.soft.astype(np.float64) / 65535
        expected = (
            iou(result.mask, truth),
            accuracy(result.mask, truth),
            max_f_beta(soft, truth, 0.3),
            mae(soft, truth),
            s_measure(soft, truth, 0.5),
            boundary_f(result.mask, truth),
        )
        assert scores == pytest.approx(expected, abs=1e-6)
        assert scores == score_pair(pair)


def test_threads_change_neither_order_nor_bits(tmp_path, red, monkeypatch):
    pairs = random_pairs(tmp_path, 12)
    alone = list(score_pairs(pairs, n_threads=1))
    assert len(alone) == 12
    # Each odd photograph waits until a later one is done, so that completion order differs from input order.
    done = {pair.name: threading.Event() for pair in pairs}
    names = [pair.name for pair in pairs]

    def out_of_order(image, vit=None, **options):
        place = names.index(image.name)
        if place % 2 == 0 and place + 1 < len(names):
            assert done[names[place + 1]].wait(timeout=60)
        result = by_red_channel(image)
        done[image.name].set()
        return result

    monkeypatch.setattr(saliency, "segment_image", out_of_order)
    assert list(score_pairs(pairs, n_threads=4)) == alone
    assert mean_scores(alone) == mean_scores(alone[::-1])


def test_failed_photographs_give_errors_instead_of_scores(tmp_path, red):
    pairs = random_pairs(tmp_path, 3)
    pairs[1].mask.write_bytes(b"")
    outcomes = list(score_pairs(pairs, n_threads=2))
    assert [type(outcome) for outcome in outcomes] == [SaliencyScores, ImageError, SaliencyScores]
    assert str(pairs[1].mask) in str(outcomes[1])
    with pytest.raises(ImageError, match="001"):
        score_pair(pairs[1])


def test_closing_the_generator_cancels_pending_photographs(tmp_path, red, monkeypatch):
    begun = []

    def record(image, vit=None, **options):
        begun.append(image)
        return by_red_channel(image)

    monkeypatch.setattr(saliency, "segment_image", record)
    save_pair(tmp_path, "a", [[255, 0]], [[1, 0]])
    pair = Pair("a.png", tmp_path / "images" / "a.png", tmp_path / "masks" / "a.png")
    outcomes = score_pairs([pair] * 1000, n_threads=2)
    next(outcomes)
    outcomes.close()
    assert 1 <= len(begun) < 20


def test_mean_of_no_scores_raises():
    with pytest.raises(ValueError, match="scores must not be empty"):
        mean_scores([])


def test_mean_rounds_once():
    # Added from left to right, ten tenths make 0.9999999999999999.
    assert mean_scores([SaliencyScores(0.1, 0.1, 0.1, 0.1, 0.1, 0.1)] * 10) == (0.1,) * 6


def test_interrupt_is_status_130(two, monkeypatch, capsys):
    def interrupt(image, vit=None, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(saliency, "segment_image", interrupt)
    status, captured = run_face([*two, "--threads", "1"], capsys)
    assert status == 130
    assert captured.out == "" and "Traceback" not in captured.err


# With a network.


def discs(folder, count, height=96, width=128):
    """Bright discs on a darker ground with a little texture."""
    random = np.random.default_rng(3)
    i, j = np.mgrid[:height, :width]
    for name in range(count):
        row, column = random.integers(35, height - 35), random.integers(35, width - 35)
        truth = (i - row) ** 2 + (j - column) ** 2 < 26**2
        rgb = np.where(truth[..., None], (220, 120, 40), (50, 90, 60)) + random.normal(0, 8, (height, width, 3))
        for part, picture in (("images", rgb.clip(0, 255)), ("masks", truth * 255)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(folder / part / f"{name}.png")
    return [str(folder / "images"), str(folder / "masks")]


def command(*argv):
    environment = dict(os.environ, PYTHONPATH=str(CHECKOUT), OPENBLAS_NUM_THREADS="1")
    return [sys.executable, "-m", "vitnp.evaluate", "--task", "saliency", *argv], environment


@pytest.mark.slow(reason="runs the command twice")
def test_the_command_scores_the_built_in_network(tmp_path, builtin):
    folders = discs(tmp_path, 3)
    results = []
    for threads in ("1", "3"):
        argv, environment = command(*folders, "--json", "--size", "160", "--threads", threads)
        done = subprocess.run(
            argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        results.append(done.stdout)
        assert "built-in" in done.stderr
    assert results[0] == results[1]
    result = json.loads(results[0])
    assert list(result) == [*KEYS, "device"]
    pairs, _ = match_pairs(*folders)
    scores = mean_scores(list(score_pairs(pairs, builtin, n_threads=2, short_side=160)))
    assert result.pop("device") == dict.fromkeys(("network", "cluster", "refine"), "cpu")
    assert result == {"images": 3, **scores._asdict()}
    # A disc of its own color is an easy object.
    assert result["iou"] > 0.6 and result["accuracy"] > 0.8 and result["mae"] < 0.2


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name == "nt", reason="there are no POSIX signals")
@pytest.mark.parametrize(("levels", "threads"), [("image", "1"), ("image", "2"), ("all", "2")])
def test_control_c_stops_the_command(tmp_path, builtin, levels, threads):
    folders = discs(tmp_path, 1)
    for copy in range(1, 500):
        for folder in map(pathlib.Path, folders):
            os.link(folder / "0.png", folder / f"{copy}.png")
    argv, environment = command(*folders, "--levels", levels, "--threads", threads)
    environment["TMPDIR"] = str(tmp_path)
    with subprocess.Popen(
        argv, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        # The notice about the built-in network comes just before the work, which takes much longer than a second.
        assert "built-in" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    # What stays of a set's features is named, and nothing else stays.
    *notices, last = err.splitlines()
    assert last == "vitnp: interrupted"
    kept = list(tmp_path.glob("vitnp-*"))
    assert len(kept) == len(notices) <= (levels == "all")
    for folder, notice in zip(kept, notices):
        assert f"--cache {folder}," in notice


def scored_as_a_set(capsys, *argv):
    assert evaluate.main([*argv, "--size", "96", "--quiet", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.mark.slow(reason="evaluates thirty images four times")
def test_thirty_photographs_are_fitted_as_a_set(tmp_path, builtin, capsys):
    folders = discs(tmp_path, 30)
    found = {
        (levels, threads): scored_as_a_set(
            capsys, *folders, "--levels", levels, "--threads", threads, "--refine", "none"
        )
        for levels, threads in (("auto", "1"), ("all", "3"), ("image", "2"))
    }
    assert list(found["auto", "1"]) == [*KEYS, "device"]
    # To the bit, whatever the threads; and it's not the same as each by itself.
    assert found["auto", "1"] == found["all", "3"] != found["image", "2"]
    # Against the Segmenter's masks, scored here.
    pairs, _ = match_pairs(*folders)
    segmenter = Segmenter(builtin, short_side=96, refine="none").fit([pair.image for pair in pairs])
    expected = []
    for pair, mask in zip(pairs, segmenter.masks):
        truth = read_truth(pair.mask, mask.shape)
        expected.append(np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth))
    assert found["all", "3"]["iou"] == pytest.approx(np.mean(expected), abs=1e-12)
    scored = saliency.score_set(pairs, Segmenter(builtin, short_side=96, refine="none", n_threads=3))
    assert list(scored.ranking) == list(range(30))
    assert list(scored.ranking.values()) == pytest.approx(expected, abs=1e-12)
    # One photograph fewer, and each is by itself.
    (tmp_path / "images" / "29.png").unlink()
    argv = [*folders, "--refine", "none"]
    assert scored_as_a_set(capsys, *argv) == scored_as_a_set(capsys, *argv, "--levels", "each")


@pytest.mark.slow(reason="fits a collection per seed")
@pytest.mark.parametrize("levels", ["image", "all"])
def test_seeds_give_mean_and_deviation(tmp_path, builtin, capsys, monkeypatch, levels):
    folders = discs(tmp_path, 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    alone = [scored_as_a_set(capsys, *folders, "--levels", levels, "--seed", str(seed)) for seed in (2, 3, 4)]
    table = tmp_path / "new" / "table.csv"
    argv = [*folders, "--levels", levels, "--seed", "2", "--seeds", "3", "--csv", str(table)]
    found = scored_as_a_set(capsys, *argv)
    assert list(found)[:7] == KEYS and found["images"] == 4
    assert found["seeds"] == [
        {"seed": seed, **{key: run[key] for key in KEYS[1:]}} for seed, run in zip((2, 3, 4), alone)
    ]
    for key in KEYS[1:]:
        values = [run[key] for run in alone]
        assert found[key] == pytest.approx(np.mean(values), abs=1e-12)
        assert found["deviation"][key] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[0] == ["score", "mean", "deviation", "seed 2", "seed 3", "seed 4"]
    assert [float(cell) for cell in rows[2][3:]] == [run["iou"] for run in alone]
    # The features that the seeds shared are gone.
    assert not list((tmp_path / "temporary").iterdir())
    assert evaluate.main([*argv, "--size", "96", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "mean", "deviation", "seed", "2", "seed", "3", "seed", "4"]
    assert len({len(line) for line in lines}) == 1


def test_seeds_share_features(tmp_path, builtin, capsys, monkeypatch):
    folders = discs(tmp_path, 3)
    passes = []
    monkeypatch.setattr(type(builtin), "__call__", counting(type(builtin).__call__, passes))
    counts = []
    for seeds in ("1", "4"):
        passes.clear()
        scored_as_a_set(capsys, *folders, "--levels", "all", "--seeds", seeds)
        # What is no larger than a patch only asks the network what it has.
        counts.append(sum(shape[0] for shape in passes if min(shape[2:]) > 16))
    assert counts == [3, 3]


def counting(original, passes):
    def call(self, images, *args, **options):
        passes.append(images.shape)
        return original(self, images, *args, **options)

    return call


def test_a_sets_broken_files_are_skipped_and_listed(tmp_path, builtin, capsys):
    folders = discs(tmp_path, 5)
    (tmp_path / "images" / "1.png").write_bytes(b"nonsense")
    (tmp_path / "masks" / "3.png").write_bytes(b"nonsense")
    assert evaluate.main([*folders, "--levels", "all", "--size", "96", "--json"]) == EXIT_SOME_FAILED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 3
    assert "2 of 5 failed" in captured.err
    assert captured.err.index("images/1.png") < captured.err.index("masks/3.png")
    for name in "024":
        (tmp_path / "images" / f"{name}.png").write_bytes(b"")
    status, captured = run_face([*folders, "--levels", "all", "--size", "96", "--json", "--quiet"], capsys)
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.slow(reason="runs a whole evaluation")
@pytest.mark.parametrize("levels", ["image", "all"])
def test_report_shows_truth_and_prediction(tmp_path, builtin, capsys, levels):
    folders = discs(tmp_path, 3)
    scored_as_a_set(capsys, *folders, "--levels", levels, "--report", str(tmp_path / "report"))
    for name in ("best", "median", "worst"):
        with Image.open(tmp_path / "report" / f"{name}.png") as picture:
            assert picture.info["Software"].startswith("vitnp") and picture.size[0] > 1000
    # What can't be written is known before anything is computed.
    (tmp_path / "report" / "best.png").write_bytes(b"mine")
    status, captured = run_face([*folders, "--report", str(tmp_path / "report")], capsys)
    assert status == 2 and "best.png" in captured.err and "built-in" not in captured.err
    status, captured = run_face([*folders, "--csv", str(tmp_path / "report" / "best.png" / "table.csv")], capsys)
    assert status == 2 and "built-in" not in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--clusters", "5"], "--clusters is for --task semantic; leave it out"),
        (["--split", "val"], "--split is for the tasks semantic and discovery"),
        (["--ablate", "--report", "x"], "leave out --task and --report"),
        (["--ablate", "--task", "semantic"], "leave out --task and --report"),
        (["--seeds", "0"], "must be a whole number of at least 1"),
    ],
)
def test_options_of_other_tasks_raise(tmp_path, red, argv, words, capsys):
    save_pair(tmp_path, "a", [[255, 0]], [[1, 0]])
    status, captured = run_face([str(tmp_path / "images"), str(tmp_path / "masks"), *argv], capsys)
    assert status == 2 and words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_help_fits_a_screen():
    argv, environment = command("--help")
    environment["COLUMNS"] = "80"
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 70 and max(map(len, lines)) <= 80


def test_real_photographs(shared, vit_tiny):
    folder = shared / "data" / "duts-dev"
    pairs, _ = match_pairs(folder / "images", folder / "masks")
    scores = list(score_pairs(pairs[::40], vit_tiny, n_threads=2))
    assert len(scores) == 4
    mean = mean_scores(scores)
    # The whole set has an IoU of 0.82; four photographs are good for this much.
    assert mean.iou > 0.5 and mean.accuracy > 0.8 and mean.max_f > 0.6 and mean.mae < 0.2 and mean.s_measure > 0.6

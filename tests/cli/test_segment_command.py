"""The command `vitnp segment`: folders, broken files, reruns, wrong options, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vitnp.cli.segment import main
from vitnp.errors import UsageError


def picture_of(path) -> Image.Image:
    """Return the picture in a file, which is closed."""
    with Image.open(path) as picture:
        picture.load()
        return picture


def photograph(path, seed: int = 0, size: tuple[int, int] = (96, 72)) -> None:
    """Write a bright square on noise, small enough to be fast."""
    rng = np.random.default_rng(seed)
    picture = rng.normal(70, 12, (size[1], size[0], 3))
    picture[20:52, 30:66] = (230, 140 + seed, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fast(*arguments: object) -> int:
    """Run the command at a small size, to save time."""
    return main([*map(str, arguments), "--short-side", "96", "--quiet"])


def test_one_photograph_beside_itself(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png")]) == 0
    assert files(tmp_path) == {"a.png", "a_mask.png", "a_overlay.png"}
    mask = picture_of(tmp_path / "a_mask.png")
    assert mask.size == (96, 72) and set(np.unique(np.asarray(mask))) == {0, 255}
    out, err = capsys.readouterr()
    assert "a_mask.png" in out and "foreground" in out
    assert err.count("\n") == 1 and "built-in checkpoint" in err


def test_quiet_says_nothing(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    assert fast(tmp_path / "a.png") == 0
    assert capsys.readouterr() == ("", "")


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "teal").save(tmp_path / "turned.jpg", exif=exif)
    assert fast(tmp_path / "turned.jpg", "--save", "mask") == 0
    assert picture_of(tmp_path / "turned_mask.png").size == (40, 80)


def test_folder_is_mirrored_and_names_that_collide_keep_their_extension(tmp_path):
    for name in ("x/a.png", "x/a.jpg", "y/z/b.bmp", "y/.hidden.png"):
        photograph(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("not a photograph")
    assert fast(tmp_path / "in", "--out", tmp_path / "out", "--save", "mask") == 0
    assert files(tmp_path / "out") == {"x/a.png_mask.png", "x/a.jpg_mask.png", "y/z/b_mask.png"}


def test_rerun_skips_finished_photographs_and_own_outputs(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    photograph(tmp_path / "b.png", seed=1)
    assert fast(tmp_path) == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main([str(tmp_path), "--short-side", "96", "--json", "--quiet"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["status"] for line in lines] == ["skipped", "skipped"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written

    photograph(tmp_path / "b.png", seed=2)  # edited: its mask is no longer its own
    assert main([str(tmp_path), "--short-side", "96", "--json", "--quiet"]) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["skipped", "done"]
    for again in (["--seed", "1"], ["--seed", "1", "--overwrite"], ["--seed", "1", "--save", "score,keys"]):
        assert main([str(tmp_path), "--short-side", "96", "--json", "--quiet", *again]) == 0
        assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["done", "done"]
    assert main([str(tmp_path), "--short-side", "96", "--json", "--quiet", "--seed", "1", "--save", "score,keys"]) == 0
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["skipped", "skipped"]


def test_foreign_files_are_replaced_only_with_overwrite(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_mask.png").write_text("mine")
    assert fast(tmp_path / "a.png", "--out", tmp_path / "out") == 2
    assert "a_mask.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "a_mask.png").read_text() == "mine"
    assert fast(tmp_path / "a.png", "--out", tmp_path / "out", "--overwrite") == 0
    assert picture_of(tmp_path / "out" / "a_mask.png").size == (96, 72)


def test_every_kind_of_output(tmp_path):
    photograph(tmp_path / "a.png")
    assert fast(tmp_path / "a.png", "--out", tmp_path / "o", "--save", "mask,overlay,cutout,soft,score,keys,npz") == 0
    names = {"a_mask.png", "a_overlay.png", "a_cutout.png", "a_soft.png", "a_score.npy", "a_keys.npy", "a.npz"}
    assert files(tmp_path / "o") == names
    assert picture_of(tmp_path / "o" / "a_cutout.png").mode == "RGBA"
    assert np.load(tmp_path / "o" / "a_keys.npy").shape == (6, 8, 192)


def test_cutouts_on_a_color_and_cropped(tmp_path):
    photograph(tmp_path / "a.png")
    assert fast(tmp_path / "a.png", "--save", "cutout", "--background", "#f80", "--crop") == 0
    with Image.open(tmp_path / "a_cutout.png") as cropped:
        assert cropped.mode == "RGB"
        assert cropped.width < 96 and cropped.height < 72
        size = cropped.size
    assert fast(tmp_path / "a.png", "--save", "cutout", "--crop", "10%") == 0  # other options: it is done again
    with Image.open(tmp_path / "a_cutout.png") as larger:
        assert larger.mode == "RGBA"
        assert larger.size > size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--background", "bluu"], 'background must be "transparent", "blur" or an opaque color such as white'),
        (["--crop=-3"], "--crop must be a margin in pixels or percent, such as 20 or 5%, got '-3'"),
        (["--crop", "5", "--save", "mask"], "--background and --crop change cutouts; add cutout to the list of --save"),
    ],
)
def test_options_of_cutouts_that_are_not_allowed(tmp_path, capsys, options, message):
    photograph(tmp_path / "a.png")
    with pytest.raises((SystemExit, UsageError)) as error:
        fast(tmp_path / "a.png", "--save", "cutout", *options)
    assert message in capsys.readouterr().err + str(error.value)
    assert files(tmp_path) == {"a.png"}


def test_cutouts_of_a_set(tmp_path):
    for seed in range(2):
        photograph(tmp_path / "in" / f"{seed}.png", seed=seed)
    command = ["--levels", "all", "--out", tmp_path / "out", "--save", "cutout", "--background"]
    for background in ("white", "blur"):  # the second run is another one
        assert fast(tmp_path / "in", *command, background) == 0
        before = (tmp_path / "out" / "0_cutout.png").stat().st_mtime_ns
        assert picture_of(tmp_path / "out" / "0_cutout.png").mode == "RGB"
    assert fast(tmp_path / "in", *command, "blur") == 0  # and the third one nothing new
    assert (tmp_path / "out" / "0_cutout.png").stat().st_mtime_ns == before


def test_json_describes_the_result(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png"), "--json", "--quiet"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    mask = np.asarray(picture_of(tmp_path / "a_mask.png")) > 0
    assert found["status"] == "done" and found["photograph"].endswith("a.png")
    assert (found["width"], found["height"]) == (96, 72)
    assert found["share"] == pytest.approx(mask.mean(), abs=1e-6)
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    rows, columns = np.nonzero(parts == np.bincount(parts[mask]).argmax())
    largest = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert found["boxes"][0] == largest
    assert 0 <= found["confidence"] <= 1
    assert set(found["seconds"]) == {"decode", "network", "cluster", "refine", "write"}
    assert found["outputs"]["overlay"].endswith("a_overlay.png")


def broken_folder(folder) -> None:
    photograph(folder / "good.png")
    photograph(folder / "sub" / "fine.jpg")
    photograph(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "empty.png").touch()
    (folder / "prose.jpg").write_text("this is no picture, whatever its name may say")


def test_broken_files_are_listed_and_the_others_go_on(tmp_path, capsys):
    broken_folder(tmp_path / "in")
    assert fast(tmp_path / "in", "--out", tmp_path / "out", "--save", "mask") == 3
    assert files(tmp_path / "out") == {"good_mask.png", "sub/fine_mask.png"}
    err = capsys.readouterr().err
    assert "3 of 5 failed" in err and "Traceback" not in err
    for name in ("cut.jpg", "empty.png", "prose.jpg"):
        assert sum(name in line for line in err.splitlines()) == 1


def test_what_folders_hold_besides_photographs_is_said_at_the_end(tmp_path, capsys):
    photograph(tmp_path / "in" / "good.png")
    for name in ("1.cr2", "2.CR2", "film.mov"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--short-side", "96"]) == 3
    assert files(tmp_path / "out") == {"good_mask.png", "good_overlay.png"}
    assert capsys.readouterr().err.splitlines()[-3:] == [
        "vitnp: left out, because vitnp does not read them in folders: 2 camera raw, 1 video; "
        "videos are named by themselves",
        "vitnp: 1 of 2 failed:",
        f"  {tmp_path / 'in' / 'gone.jpg'}: this link leads to no file; mend or remove it",
    ]


def test_json_has_a_line_for_each_failure(tmp_path, capsys):
    broken_folder(tmp_path / "in")
    assert (
        main(
            [
                str(tmp_path / "in"),
                str(tmp_path / "gone.jpg"),
                "--out",
                str(tmp_path / "out"),
                "--short-side",
                "96",
                "--json",
            ]
        )
        == 3
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["status"] for line in lines) == ["done", "done", "failed", "failed", "failed", "failed"]
    assert all(line["error"] for line in lines if line["status"] == "failed")


@pytest.mark.parametrize("bad", ["missing.jpg", "empty.png", "prose.jpg"])
def test_nothing_done_is_status_2(tmp_path, capsys, bad):
    broken_folder(tmp_path)
    assert fast(tmp_path / bad) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and bad in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--refine", "magic"], "magic"),
        (["--save", "poster"], "poster"),
        (["--save", ","], "--save"),
        (["--short-side", "0"], "0"),
        (["--seed", "-1"], "-1"),
        (["--threads", "none"], "none"),
        (["--min-confidence", "2"], "2"),
        (["--layer", "77"], "77"),
        (["--stride", "7"], "7"),
        (["--model", "no_such_model"], "no_such_model"),
        (["--bogus"], "--bogus"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(tmp_path, arguments, named):
    photograph(tmp_path / "a.png")
    run = subprocess.run(
        [sys.executable, "-m", "vitnp.segment", str(tmp_path / "a.png"), *arguments, "--quiet"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("vitnp: error:") and run.stderr.count("\n") == 1 and named in run.stderr
    assert files(tmp_path) == {"a.png"}


def test_wrong_thread_variable_is_named(tmp_path):
    photograph(tmp_path / "a.png")
    run = subprocess.run(
        [sys.executable, "-m", "vitnp.segment", str(tmp_path / "a.png")],
        capture_output=True, text=True, env={**os.environ, "VITNP_NUM_THREADS": "many"},
    )  # fmt: skip
    assert run.returncode == 2 and "VITNP_NUM_THREADS" in run.stderr


def test_same_masks_for_any_number_of_threads_and_any_order(tmp_path):
    for seed in range(5):
        photograph(tmp_path / "in" / f"{seed}.png", seed=seed, size=(96 + 16 * seed, 72))
    assert fast(tmp_path / "in", "--out", tmp_path / "one", "--save", "soft,score", "--threads", 1) == 0
    backwards = [tmp_path / "in" / f"{seed}.png" for seed in reversed(range(5))]
    assert fast(*backwards, "--out", tmp_path / "three", "--save", "soft,score", "--threads", 3) == 0
    assert files(tmp_path / "one") == files(tmp_path / "three")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_max_pixels(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    assert fast(tmp_path / "a.png", "--max-pixels", "5e3") == 2
    assert "--max-pixels" in capsys.readouterr().err


def test_token_cap_gives_one_line_of_notice(tmp_path, capsys):
    Image.new("RGB", (3000, 10), "olive").save(tmp_path / "thin.png")
    assert main([str(tmp_path / "thin.png"), "--max-tokens", "300"]) == 0
    assert sum("--max-tokens" in line for line in capsys.readouterr().err.splitlines()) == 1
    assert picture_of(tmp_path / "thin_mask.png").size == (3000, 10)


def test_output_folder_that_is_a_file(tmp_path, capsys):
    photograph(tmp_path / "a.png")
    (tmp_path / "o").write_text("a file")
    assert fast(tmp_path / "a.png", "--out", tmp_path / "o") == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupt_leaves_whole_files_only(tmp_path, threads):
    for index in range(60):
        photograph(tmp_path / "in" / f"{index:02}.png", seed=index % 9, size=(480, 360))
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        "--threads",
        threads,
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*_overlay.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in err and "interrupted" in err
    done = files(tmp_path / "out")
    assert 0 < len(done) < 120 and not [name for name in done if not name.endswith(("_mask.png", "_overlay.png"))]
    for name in done:
        picture_of(tmp_path / "out" / name)

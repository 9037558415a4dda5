"""`python -m vitnp.segment FOLDER --classes N --out OUT` as its users meet it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vitnp import Segmenter
from vitnp.cli.segment import main
from vitnp.errors import OutputError, UsageError
from vitnp.export.collection_run import CollectionRun
from vitnp.export.naming import output_stems
from vitnp.io.find import Photograph, find_photographs
from vitnp.io.stamp import stamp
from vitnp.method.regions import RegionRule

RUN_FILES = {"annotations.json", "classes.json", "contact-sheet.png", "gallery.html", "run.json"}


def photograph(path, seed: int = 0, size: tuple[int, int] = (128, 96)) -> None:
    """A square, a disc or a triangle of some color on noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    dy, dx = (y - size[1] * rng.uniform(0.4, 0.6)) / 29, (x - size[0] * rng.uniform(0.4, 0.6)) / 29
    kind = seed % 3
    shape = [np.maximum(abs(dy), abs(dx)) < 1, dy**2 + dx**2 < 1, (abs(dx) < 0.6 * (dy + 1)) & (abs(dy) < 1)][kind]
    white = [shape & False, x // 6 % 2 == 1, (x // 6 + y // 6) % 2 == 1][kind]
    thing = np.where(white[..., None], 250, [(230, 40, 40), (40, 220, 60), (70, 90, 250)][kind])
    picture = np.where(shape[..., None], thing, rng.normal(110, 10, (*shape.shape, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def statuses(capsys) -> list[str]:
    return [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()]


def segment(*arguments: object) -> int:
    """The command at a small size, which changes nothing but the time it takes."""
    return main([*map(str, arguments), "--size", "96", "--quiet"])


def decoded(segmentation: dict) -> np.ndarray:
    """COCO's compressed run lengths, by the letter of its format: five bits a character, the sign in the last, differences to
    the run before last; columns before rows."""
    text, counts, place = segmentation["counts"], [], 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            shift, place, more = shift + 5, place + 1, bool(bits & 32)
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    flat = np.concatenate([np.full(count, index % 2, bool) for index, count in enumerate(counts)])
    height, width = segmentation["size"]
    return flat.reshape(width, height).T


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Nine photographs in two folders, with all that users leave lying about."""
    folder = tmp_path_factory.mktemp("in")
    for seed in range(4):
        photograph(folder / "x" / f"{seed}.png", seed)
    for seed in range(4):
        photograph(folder / "y" / f"{seed}.png", seed + 5, size=(110, 100))
    (folder / "x" / "notes.txt").write_text("not a photograph")
    (folder / "empty.jpg").touch()
    photograph(folder / "cut.jpg", 1)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])
    return folder


@pytest.fixture(scope="module")
def made(collection, tmp_path_factory):
    """What the command makes of it; read only."""
    out = tmp_path_factory.mktemp("out") / "deep"
    assert segment(collection, "--classes", 3, "--out", out, "--fit-to", out / "fitted.safetensors") == 3
    return out


NAMES = [f"{folder}/{seed}" for folder in "xy" for seed in range(4)]


# --- Everything that is written ---------------------------------------------------------------------------------------


def test_all_files_and_no_others(made):
    own = {f"{name}_{kind}.png" for name in NAMES for kind in ("mask", "overlay", "labels")}
    assert files(made) == own | RUN_FILES | {"fitted.safetensors"}


def test_labels_are_palette_pictures_that_agree_with_the_masks(made):
    classes = set()
    for name in NAMES:
        with Image.open(made / f"{name}_labels.png") as picture:
            assert picture.mode == "P" and picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            labels = np.asarray(picture)
        np.testing.assert_array_equal(labels > 0, pixels(made / f"{name}_mask.png") > 0)
        classes |= set(np.unique(labels))
    assert classes == {0, 1, 2, 3}


def test_annotations_decode_to_the_labels(made):
    told = json.loads((made / "annotations.json").read_text())
    assert [image["file_name"] for image in told["images"]] == [f"{name}.png" for name in NAMES]
    assert [category["id"] for category in told["categories"]] == [1, 2, 3]
    for image in told["images"]:
        labels = pixels(made / image["file_name"].replace(".png", "_labels.png"))
        assert labels.shape == (image["height"], image["width"])
        painted = np.zeros_like(labels)
        for annotation in told["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = decoded(annotation["segmentation"])
                rows, columns = np.nonzero(mask)
                assert annotation["area"] == mask.sum() and 0 < annotation["score"] <= 1
                assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                painted[mask] = annotation["category_id"]
        np.testing.assert_array_equal(painted, labels)


def test_classes_json_counts_what_the_labels_show(made):
    records = json.loads((made / "classes.json").read_text())["classes"]
    shown = [set(np.unique(pixels(made / f"{name}_labels.png"))) - {0} for name in NAMES]
    assert [record["id"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["images"] == sum(record["id"] in classes for classes in shown)
        assert record["id"] in shown[NAMES.index(record["medoid"].removesuffix(".png"))]
        assert record["patches"] > 0 and 0 < record["confidence"] <= 1


def test_pages_to_look_at(made):
    page = (made / "gallery.html").read_text()
    assert all(f"{name}.png" in page for name in NAMES) and "cut.jpg" not in page
    assert min(pixels(made / "contact-sheet.png").shape[:2]) > 100


def test_run_json_tells_how_and_what_failed(made, builtin):
    told = json.loads((made / "run.json").read_text())
    assert told["photographs"] == {"found": 10, "done": 8, "failed": 2}
    assert sorted(os.path.basename(failure["photograph"]) for failure in told["failures"]) == ["cut.jpg", "empty.jpg"]
    assert told["checkpoint"]["sha256"] == builtin.sha256 and told["seeds"] == [0]
    assert told["parameters"]["size"] == 96 and told["parameters"]["classes"] == 3
    assert {"features", "image level", "categories", "levels", "masks", "classes", "files", "total"} <= set(
        told["seconds"]
    )


def test_the_same_again_to_the_byte_for_any_number_of_threads(made, collection, tmp_path):
    again = tmp_path / "again"
    arguments = ["--classes", 3, "--out", again, "--threads", 1, "--cache", tmp_path / "cache"]
    assert segment(collection, *arguments, "--fit-to", again / "fitted.safetensors") == 3
    for name in files(made) - {"run.json"}:
        assert (made / name).read_bytes() == (again / name).read_bytes(), name


def test_json_lines(collection, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--size", "96", "--json", "--quiet", "--save", "mask"]
    assert main([str(collection), "--levels", "all", "--classes", "2", *out]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(line["status"] for line in lines) == ["done"] * 8 + ["failed"] * 2
    for line in lines:
        if line["status"] == "done":
            labels = pixels(line["outputs"]["labels"])
            assert line["classes"] == [int(label) for label in np.unique(labels) if label] and line["category"] == 0
            assert set(line["outputs"]) == {"mask", "labels"} and line["share"] == pytest.approx(
                (labels > 0).mean(), abs=1e-6
            )
        else:
            assert os.path.basename(line["photograph"]) in ("cut.jpg", "empty.jpg") and line["error"]


# --- Variants ---------------------------------------------------------------------------------------------------------


def test_without_classes_and_without_out(collection, tmp_path, capsys):
    shutil.copytree(collection / "x", tmp_path / "x")
    assert main([str(tmp_path / "x"), "--levels", "all", "--size", "96", "--save", "mask"]) == 0
    assert files(tmp_path) == {f"x/{n}.png" for n in range(4)} | {f"x/{n}_mask.png" for n in range(4)} | {"x/notes.txt"}
    assert "--out" in capsys.readouterr().err
    assert segment(tmp_path / "x", "--levels", "all", "--out", tmp_path / "o", "--save", "mask") == 0
    assert files(tmp_path / "o") == {f"{n}_mask.png" for n in range(4)} | RUN_FILES - {"classes.json"}
    annotations = json.loads((tmp_path / "o" / "annotations.json").read_text())["annotations"]
    for annotation, seed in zip(annotations, range(4), strict=True):
        np.testing.assert_array_equal(
            decoded(annotation["segmentation"]), pixels(tmp_path / "o" / f"{seed}_mask.png") > 0
        )


def test_auto_takes_thirty_for_a_set(tmp_path):
    for index in range(30):
        photograph(tmp_path / "in" / f"{index:02}.png", index)
    quick = ["--save", "mask", "--refine", "none"]
    assert segment(tmp_path / "in", "--out", tmp_path / "thirty", *quick) == 0
    assert "run.json" in files(tmp_path / "thirty")
    (tmp_path / "in" / "00.png").unlink()
    assert segment(tmp_path / "in", "--out", tmp_path / "fewer", *quick) == 0
    assert files(tmp_path / "fewer") == {f"{index:02}_mask.png" for index in range(1, 30)}


@pytest.mark.parametrize("how", ["components", "split"])
def test_regions_and_polygons(collection, tmp_path, how):
    assert (
        segment(collection / "x", "--classes", 2, "--regions", how, "--polygons", "--out", tmp_path, "--save", "mask")
        == 0
    )
    annotations = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert len(annotations) >= 4 and all(isinstance(annotation["segmentation"], list) for annotation in annotations)


def test_photographs_of_nothing(tmp_path, capsys):
    for index in range(3):
        Image.new("RGB", (64, 64), (40 * index, 9, 9)).save(tmp_path / f"{index}.png")
    out = ["--out", str(tmp_path / "o"), "--size", "96", "--json", "--quiet", "--min-confidence", "1"]
    assert main([str(tmp_path), "--levels", "all", *out]) == 0
    assert [json.loads(line)["share"] for line in capsys.readouterr().out.splitlines()] == [0, 0, 0]
    assert json.loads((tmp_path / "o" / "annotations.json").read_text())["annotations"] == []
    with pytest.raises(UsageError, match="0 regions"):
        segment(tmp_path, "--classes", 1, "--out", tmp_path / "p", "--min-confidence", 1)


# --- Fitted collections -----------------------------------------------------------------------------------------------


def test_a_fitted_collection_labels_new_photographs(made, collection, tmp_path, builtin, capsys):
    photograph(tmp_path / "new.png", 30)
    arguments = [
        str(tmp_path / "new.png"),
        "--collection",
        str(made / "fitted.safetensors"),
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    assert main([*arguments, "--size", "96", "--json"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    labels = pixels(tmp_path / "o" / "new_labels.png")
    np.testing.assert_array_equal(
        labels, Segmenter.load(made / "fitted.safetensors", builtin).predict(tmp_path / "new.png").labels
    )
    assert line["outputs"]["labels"].endswith("new_labels.png") and line["classes"] == [int(labels.max())]
    # Of the same kind as x/0 and x/3.
    assert labels.max() == pixels(made / "x" / "0_labels.png").max() == pixels(made / "x" / "3_labels.png").max()
    assert main([*arguments, "--size", "96", "--json"]) == 0
    assert statuses(capsys) == ["skipped"]
    (tmp_path / "o" / "new_labels.png").unlink()
    assert main([*arguments, "--size", "96", "--json"]) == 0
    assert statuses(capsys) == ["done"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "size 96, not 320"),
        (["--size", "96", "--facet", "query"], "facet key, not query"),
        (["--size", "96", "--layer", "2"], "layer"),
        (["--size", "96", "--classes", "3"], "--classes"),
        (["--size", "96", "--levels", "all"], "--levels"),
    ],
)
def test_collections_that_do_not_fit(made, tmp_path, arguments, told):
    photograph(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(tmp_path / "a.png"),
        "--quiet",
        "--collection",
        str(made / "fitted.safetensors"),
    ]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and told in run.stderr and run.stderr.count("\n") == 1
    assert files(tmp_path) == {"a.png"}


def test_files_that_are_no_collection(collection, tmp_path, capsys):
    (tmp_path / "prose").write_text("mine")
    for name in ("prose", "missing"):
        run = subprocess.run(
            [sys.executable, "-m", "vitnp.segment", str(collection / "x"), "--quiet", "--collection", str(tmp_path / name)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 2 and name in run.stderr and run.stderr.count("\n") == 1


# --- Reruns -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A folder of three photographs and a broken one, done once."""
    for seed in range(3):
        photograph(tmp_path / "in" / f"{seed}.png", seed)
    (tmp_path / "in" / "prose.jpg").write_text("no picture")
    assert (
        segment(
            tmp_path / "in", "--classes", 2, "--out", tmp_path / "out", "--save", "mask", "--fit-to", tmp_path / "f"
        )
        == 3
    )
    return tmp_path


def again(small, *arguments: object) -> int:
    known = [small / "in", "--out", small / "out", "--save", "mask", "--json"]
    return segment(*known, *(arguments or ("--classes", 2, "--fit-to", small / "f")))


def test_a_rerun_does_nothing_when_nothing_has_changed(small, capsys, monkeypatch):
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "fit", None)  # not even called
        assert again(small) == 3
        assert again(small, "--classes", 2) == 3
    assert statuses(capsys) == ["skipped"] * 3 + ["failed"] + ["skipped"] * 3 + ["failed"]
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before
    assert (
        main([str(small / "in"), "--classes", "2", "--out", str(small / "out"), "--save", "mask", "--size", "96"]) == 3
    )
    assert "nothing has changed" in capsys.readouterr().err


@pytest.mark.slow(reason="seven runs of a collection")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--classes", 1), ("--classes", 2, "--polygons"), ("--classes", 2, "--seed", 1), ("--classes", 2, "--overwrite"),
        ("--classes", 2, "--regions", "components"), ("--levels", "all"), ("--classes", 2, "--consistency", "majority"),
    ],
)  # fmt: skip
def test_other_settings_are_another_run(small, capsys, arguments):
    capsys.readouterr()
    assert again(small, *arguments) == 3
    assert statuses(capsys) == ["done"] * 3 + ["failed"]


@pytest.mark.slow(reason="ten runs of a collection")
@pytest.mark.parametrize(
    "change", ["edited", "added", "removed", "mended", "mask", "labels", "gallery", "foreign", "fit", "record"]
)
def test_whatever_changed_is_noticed(small, capsys, change):
    capsys.readouterr()
    done = 3
    if change == "edited":
        photograph(small / "in" / "1.png", 8)
    elif change == "added":
        photograph(small / "in" / "9.png", 9)
        done = 4
    elif change == "removed":
        (small / "in" / "1.png").unlink()
        done = 2
    elif change == "mended":
        photograph(small / "in" / "prose.jpg", 9)
        done = 4
    elif change == "mask":
        (small / "out" / "1_mask.png").unlink()
    elif change == "labels":
        (small / "out" / "1_labels.png").unlink()
    elif change == "gallery":
        (small / "out" / "gallery.html").unlink()
    elif change == "foreign":  # one by itself has another mask
        assert segment(small / "in" / "1.png", "--out", small / "out", "--save", "mask") == 0
    elif change == "fit":
        (small / "f").unlink()
    else:
        (small / "out" / "run.json").write_text('{"by": "vitnp", "rerun": [1]}')
    assert again(small) == (0 if change == "mended" else 3)
    assert statuses(capsys).count("done") == done
    assert again(small) == (0 if change == "mended" else 3)
    assert statuses(capsys).count("skipped") == done


def test_a_run_that_fails_leaves_no_record_of_the_one_before(small):
    with pytest.raises(UsageError, match="200 classes"):
        again(small, "--classes", 200)
    assert "run.json" not in files(small / "out")
    assert again(small) == 3 and "run.json" in files(small / "out")


# --- Files of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "gallery.html", "contact-sheet.png", "0_mask.png", "0_labels.png"])
def test_files_of_others_are_spared_unless_told(collection, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    arguments = [collection / "x", "--classes", 2, "--out", tmp_path, "--save", "mask"]
    about_the_run = name in RUN_FILES
    try:
        status = segment(*arguments)
    except OutputError as error:  # what `vitnp.cli.shared.run` turns into a sentence and status 2
        assert about_the_run and name in str(error)
    else:
        assert status == 3 and not about_the_run and name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert segment(*arguments, "--overwrite") == 0
    assert (tmp_path / name).read_bytes() != b"mine"


def test_fit_to_spares_what_is_no_collection(collection, tmp_path):
    shutil.copy(collection / "x" / "0.png", tmp_path / "precious.png")
    run = subprocess.run(
        [sys.executable, "-m", "vitnp.segment", str(collection / "x"), "--quiet", "--out", str(tmp_path / "o"),
         "--size", "96", "--fit-to", str(tmp_path / "precious.png")], capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and "precious.png" in run.stderr and run.stderr.count("\n") == 1
    assert (tmp_path / "precious.png").read_bytes() == (collection / "x" / "0.png").read_bytes()


def test_labels_never_replace_a_photograph(tmp_path, capsys):
    photograph(tmp_path / "a.png", 0)
    photograph(tmp_path / "a_labels.png", 1)
    before = (tmp_path / "a_labels.png").read_bytes()
    segment(tmp_path / "a.png", tmp_path / "a_labels.png", "--classes", 1, "--save", "mask", "--overwrite")
    assert (tmp_path / "a_labels.png").read_bytes() == before


# --- What goes wrong --------------------------------------------------------------------------------------------------


def test_nothing_readable_is_status_2_with_every_file_listed(tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    assert segment(tmp_path, "--classes", 1, "--out", tmp_path / "o", "--json") == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "failed"]
    assert "2 of 2 failed" in err and "a.jpg" in err and "b.jpg" in err and not files(tmp_path / "o")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--classes", "5"], "5 classes"),
        (["--classes", "300"], "300 classes"),
        (["--classes", "0"], "0"),
        (["--classes", "2", "--levels", "image"], "--levels"),
        (["--levels", "all", "--regions", "magic"], "magic"),
        (["--levels", "all", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["--levels", "all", "--fit-to", "/proc/nowhere/f"], "/proc/nowhere"),
    ],
)
def test_wrong_usage_is_one_sentence(collection, tmp_path, arguments, told):
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(collection / "x"),
        "--out",
        str(tmp_path),
        "--size",
        "96",
        "--quiet",
    ]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and told in run.stderr
    assert not RUN_FILES & files(tmp_path)


@pytest.mark.slow(reason="runs a collection")
def test_a_full_disk_is_a_sentence_and_leaves_whole_files(collection, tmp_path):
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(collection / "x"),
        "--classes",
        "2",
        "--out",
        str(tmp_path / "o"),
    ]
    run = subprocess.run(
        [*command, "--size", "96", "--quiet", "--save", "mask"], capture_output=True, text=True,
        # Labels and masks fit below it, the gallery doesn't.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)), env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode in (2, 3) and "Traceback" not in run.stderr and "vitnp:" in run.stderr
    assert not [name for name in files(tmp_path) if ".part" in name or "vitnp-features" in name]
    assert "run.json" not in files(tmp_path / "o") or run.returncode == 3


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("cache", [False, True])
def test_interrupt_says_what_is_kept_and_a_rerun_goes_on(tmp_path, cache):
    for index in range(16):
        photograph(tmp_path / "in" / f"{index:02}.png", index % 9, size=(260, 200))
    (tmp_path / "tmp").mkdir()
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "out"),
        "--size",
        "96",
    ]
    command += ["--classes", "3", "--save", "mask", *(["--cache", str(tmp_path / "cache")] if cache else [])]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*_mask.png")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in err and "interrupted" in err
    kept = tmp_path / "cache" if cache else next((tmp_path / "tmp").glob("vitnp-features-*"))
    assert str(kept) in err and "of 16 photographs are written" in err
    assert all(name.endswith("_mask.png") for name in files(tmp_path / "out"))
    for name in files(tmp_path / "out"):
        assert pixels(tmp_path / "out" / name).shape == (200, 260)
    again = subprocess.run([*command, "--cache", str(kept), "--quiet"], capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and again.stderr == "" and files(tmp_path / "out") >= RUN_FILES


def test_a_photograph_gone_before_its_thumbnail_is_left_out_of_the_pages(builtin, collection, tmp_path):
    shutil.copytree(collection / "x", tmp_path / "x")
    found = find_photographs([tmp_path / "x"])
    run = CollectionRun(
        Segmenter(builtin, 2, short_side=96), found, output_stems(found, tmp_path / "o"), ["mask"], out=tmp_path / "o"
    )
    outcomes = run.outcomes()
    first = next(outcomes)
    (tmp_path / "x" / "2.png").unlink()
    assert [outcome.status for outcome in [first, *outcomes]] == ["done"] * 4
    page = (tmp_path / "o" / "gallery.html").read_text()
    assert "1.png" in page and "2.png" not in page
    assert len(json.loads((tmp_path / "o" / "annotations.json").read_text())["images"]) == 4


def test_stamps_name_the_photograph_and_the_settings(made, collection):
    from vitnp.io.decode import file_hash

    facts = json.loads((made / "run.json").read_text())["rerun"]
    for kind, wanted in (("mask", "results"), ("overlay", "results"), ("labels", "labels")):
        assert stamp(made / "x" / f"1_{kind}.png") == {
            "vitnp:parameters": facts[wanted], "vitnp:photograph": file_hash(collection / "x" / "1.png")
        }  # fmt: skip


def test_memory_of_a_photograph_is_a_few_kilobytes(builtin, collection, tmp_path):
    """What a run keeps of each photograph, beside the numbers that NumPy holds for all of them."""
    import pickle

    found = [Photograph(path, path) for path in sorted((collection / "x").glob("*.png"))] * 3
    segmenter = Segmenter(builtin, 3, short_side=96, regions=RegionRule("components", smallest=0.0))
    run = CollectionRun(segmenter, found, output_stems(found, tmp_path), ["mask"], out=tmp_path)
    list(run.outcomes())
    for name, value in {**vars(segmenter), **vars(run)}.items():
        if isinstance(value, (dict, list)) and len(value) >= len(found) and name not in ("photographs", "settings"):
            assert len(pickle.dumps(value)) < 2000 * len(found), name

"""`python -m vitnp.segment FOLDER --classes N --out OUT` from the command line, and `CollectionRun`."""

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
from vitnp.export import collection_outputs
from vitnp.export.collection_run import CollectionRun
from vitnp.export.naming import output_stems
from vitnp.io.find import Photograph, find_photographs
from vitnp.io.stamp import stamp
from vitnp.io.write import write_json
from vitnp.method.regions import RegionRule

RUN_FILES = {"annotations.json", "classes.json", "contact-sheet.png", "gallery.html", "results.jsonl", "run.json"}


def previews(n: int) -> set[str]:
    """Files of the larger pictures for the gallery."""
    return {f"gallery/{number:05}.jpg" for number in range(1, n + 1)} | {"gallery/.vitnp-export"}


def photograph(path, seed: int = 0, size: tuple[int, int] = (128, 96)) -> None:
    """Save a square, a disc or a triangle of some color on noise."""
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
    """Run the command at a small size, to save time."""
    return main([*map(str, arguments), "--size", "96", "--quiet"])


def decoded(segmentation: dict) -> np.ndarray:
    """Decode COCO's compressed run lengths, column by column.

    Numbers have five bits per character, the sign in the last one; from the third on they are differences to the run
    before last.
    """
    text, counts, position = segmentation["counts"], [], 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            value |= (bits & 31) << shift
            shift, position, more = shift + 5, position + 1, bool(bits & 32)
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    flat = np.concatenate([np.full(count, index % 2, bool) for index, count in enumerate(counts)])
    height, width = segmentation["size"]
    return flat.reshape(width, height).T


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Eight photographs in two folders, and an empty, a truncated and a text file beside them."""
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
def outputs(collection, tmp_path_factory):
    """The outputs of the command for the collection; tests only read them."""
    out = tmp_path_factory.mktemp("out") / "deep"
    assert segment(collection, "--classes", 3, "--out", out, "--fit-to", out / "fitted.safetensors") == 3
    return out


NAMES = [f"{folder}/{seed}" for folder in "xy" for seed in range(4)]


# --- The outputs -----------------------------------------------------------------------------------------------------


def test_all_files_and_no_others(outputs):
    own = {f"{name}_{kind}.png" for name in NAMES for kind in ("mask", "overlay", "labels")}
    assert files(outputs) == own | RUN_FILES | previews(8) | {"fitted.safetensors"}


def test_labels_are_palette_pictures_that_agree_with_the_masks(outputs):
    classes = set()
    for name in NAMES:
        with Image.open(outputs / f"{name}_labels.png") as picture:
            assert picture.mode == "P" and picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            labels = np.asarray(picture)
        np.testing.assert_array_equal(labels > 0, pixels(outputs / f"{name}_mask.png") > 0)
        classes |= set(np.unique(labels))
    assert classes == {0, 1, 2, 3}


def test_annotations_decode_to_the_labels(outputs):
    content = json.loads((outputs / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{name}.png" for name in NAMES]
    assert [category["id"] for category in content["categories"]] == [1, 2, 3]
    for image in content["images"]:
        labels = pixels(outputs / image["file_name"].replace(".png", "_labels.png"))
        assert labels.shape == (image["height"], image["width"])
        painted = np.zeros_like(labels)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = decoded(annotation["segmentation"])
                rows, columns = np.nonzero(mask)
                assert annotation["area"] == mask.sum() and 0 < annotation["score"] <= 1
                assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                painted[mask] = annotation["category_id"]
        np.testing.assert_array_equal(painted, labels)


def test_classes_json_counts_what_the_labels_show(outputs):
    records = json.loads((outputs / "classes.json").read_text())["classes"]
    shown = [set(np.unique(pixels(outputs / f"{name}_labels.png"))) - {0} for name in NAMES]
    assert [record["id"] for record in records] == [1, 2, 3]
    for record in records:
        assert record["images"] == sum(record["id"] in classes for classes in shown)
        assert record["id"] in shown[NAMES.index(record["medoid"].removesuffix(".png"))]
        assert record["patches"] > 0 and 0 < record["confidence"] <= 1


def test_gallery_and_contact_sheet_show_the_collection(outputs):
    page = (outputs / "gallery.html").read_text()
    cards, failures = page.partition('<ul id="grid">')[2], page.partition('<ul id="grid">')[0]
    assert all(f"{name}.png" in cards for name in NAMES) and "cut.jpg" not in cards
    assert "2 photographs failed" in failures and "cut.jpg</bdi>: the JPEG is truncated" in failures
    assert min(pixels(outputs / "contact-sheet.png").shape[:2]) > 100


def test_run_json_records_settings_and_failures(outputs, builtin):
    record = json.loads((outputs / "run.json").read_text())
    assert record["photographs"] == {"found": 10, "done": 8, "failed": 2}
    assert sorted(os.path.basename(failure["photograph"]) for failure in record["failures"]) == ["cut.jpg", "empty.jpg"]
    assert record["checkpoint"]["sha256"] == builtin.sha256 and record["seeds"] == [0]
    assert record["parameters"]["size"] == 96 and record["parameters"]["classes"] == 3
    assert {"features", "image level", "categories", "levels", "masks", "classes", "files", "total"} <= set(
        record["seconds"]
    )


def test_outputs_are_equal_to_the_byte_for_any_number_of_threads(outputs, collection, tmp_path):
    again = tmp_path / "again"
    arguments = ["--classes", 3, "--out", again, "--threads", 1, "--cache", tmp_path / "cache"]
    assert segment(collection, *arguments, "--fit-to", again / "fitted.safetensors") == 3
    for name in files(outputs) - {"run.json"}:
        assert (outputs / name).read_bytes() == (again / name).read_bytes(), name


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


# --- Options ---------------------------------------------------------------------------------------------------------


def test_without_classes_and_without_out(collection, tmp_path, capsys):
    shutil.copytree(collection / "x", tmp_path / "x")
    assert main([str(tmp_path / "x"), "--levels", "all", "--size", "96", "--save", "mask"]) == 0
    assert files(tmp_path) == {f"x/{n}.png" for n in range(4)} | {f"x/{n}_mask.png" for n in range(4)} | {"x/notes.txt"}
    assert "--out" in capsys.readouterr().err
    assert segment(tmp_path / "x", "--levels", "all", "--out", tmp_path / "o", "--save", "mask") == 0
    assert files(tmp_path / "o") == {f"{n}_mask.png" for n in range(4)} | previews(4) | RUN_FILES - {"classes.json"}
    annotations = json.loads((tmp_path / "o" / "annotations.json").read_text())["annotations"]
    for annotation, seed in zip(annotations, range(4), strict=True):
        np.testing.assert_array_equal(
            decoded(annotation["segmentation"]), pixels(tmp_path / "o" / f"{seed}_mask.png") > 0
        )


@pytest.mark.slow(reason="runs a collection")
def test_thirty_photographs_are_segmented_as_a_collection_by_default(tmp_path):
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


def test_photographs_without_objects(tmp_path, capsys):
    for index in range(3):
        Image.new("RGB", (64, 64), (40 * index, 9, 9)).save(tmp_path / f"{index}.png")
    out = ["--out", str(tmp_path / "o"), "--size", "96", "--json", "--quiet", "--min-confidence", "1"]
    assert main([str(tmp_path), "--levels", "all", *out]) == 0
    assert [json.loads(line)["share"] for line in capsys.readouterr().out.splitlines()] == [0, 0, 0]
    assert json.loads((tmp_path / "o" / "annotations.json").read_text())["annotations"] == []
    with pytest.raises(UsageError, match="regions, 0 in 3 photographs, got 1"):
        segment(tmp_path, "--classes", 1, "--out", tmp_path / "p", "--min-confidence", 1)


# --- Fitted collections ----------------------------------------------------------------------------------------------


def test_a_fitted_collection_labels_new_photographs(outputs, collection, tmp_path, builtin, capsys):
    photograph(tmp_path / "new.png", 30)
    arguments = [
        str(tmp_path / "new.png"),
        "--collection",
        str(outputs / "fitted.safetensors"),
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    assert main([*arguments, "--size", "96", "--json"]) == 0
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    labels = pixels(tmp_path / "o" / "new_labels.png")
    np.testing.assert_array_equal(
        labels, Segmenter.load(outputs / "fitted.safetensors", builtin).predict(tmp_path / "new.png").labels
    )
    assert line["outputs"]["labels"].endswith("new_labels.png") and line["classes"] == [int(labels.max())]
    # A square, as x/0 and x/3 are.
    assert labels.max() == pixels(outputs / "x" / "0_labels.png").max() == pixels(outputs / "x" / "3_labels.png").max()
    assert main([*arguments, "--size", "96", "--json"]) == 0
    assert statuses(capsys) == ["skipped"]
    (tmp_path / "o" / "new_labels.png").unlink()
    assert main([*arguments, "--size", "96", "--json"]) == 0
    assert statuses(capsys) == ["done"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "size 96, not 320"),
        (["--size", "96", "--facet", "query"], "facet key, not query"),
        (["--size", "96", "--layer", "2"], "layer"),
        (["--size", "96", "--classes", "3"], "--classes"),
        (["--size", "96", "--levels", "all"], "--levels"),
    ],
)
def test_collections_with_other_settings_are_refused(outputs, tmp_path, arguments, message):
    photograph(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "vitnp.segment",
        str(tmp_path / "a.png"),
        "--quiet",
        "--collection",
        str(outputs / "fitted.safetensors"),
    ]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert run.returncode == 2 and message in run.stderr and run.stderr.count("\n") == 1
    assert files(tmp_path) == {"a.png"}


def test_files_that_are_not_collections_are_refused(collection, tmp_path, capsys):
    (tmp_path / "prose").write_text("mine")
    for name in ("prose", "missing"):
        run = subprocess.run(
            [sys.executable, "-m", "vitnp.segment", str(collection / "x"), "--quiet",
             "--collection", str(tmp_path / name)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 2 and name in run.stderr and run.stderr.count("\n") == 1


# --- Reruns ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    """A folder of three photographs and a broken one, after one run."""
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


def rerun(finished, *arguments: object) -> int:
    known = [finished / "in", "--out", finished / "out", "--save", "mask", "--json"]
    return segment(*known, *(arguments or ("--classes", 2, "--fit-to", finished / "f")))


def test_a_rerun_does_nothing_when_nothing_has_changed(finished, capsys, monkeypatch):
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "fit", None)  # an error if called
        assert rerun(finished) == 3
        assert rerun(finished, "--classes", 2) == 3
    assert statuses(capsys) == ["skipped"] * 3 + ["failed"] + ["skipped"] * 3 + ["failed"]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert (
        main([str(finished / "in"), "--classes", "2", "--out", str(finished / "out"), "--save", "mask", "--size", "96"])
        == 3
    )
    assert "nothing has changed" in capsys.readouterr().err


def test_a_rerun_with_polygons_rewrites_only_the_annotations(finished, monkeypatch):
    out = finished / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    run_lengths = (out / "annotations.json").read_bytes()
    monkeypatch.setattr(Segmenter, "fit", None)  # an error if called
    assert rerun(finished, "--classes", 2, "--polygons") == 3
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"annotations.json", "run.json"}
    annotations = json.loads((out / "annotations.json").read_text())["annotations"]
    assert annotations and all(isinstance(annotation["segmentation"], list) for annotation in annotations)
    assert rerun(finished, "--classes", 2) == 3
    assert (out / "annotations.json").read_bytes() == run_lengths


@pytest.mark.slow(reason="six runs of a collection")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--classes", 1), ("--classes", 2, "--seed", 1),
        ("--classes", 2, "--overwrite"),
        ("--classes", 2, "--regions", "components"), ("--levels", "all"), ("--classes", 2, "--consistency", "majority"),
    ],
)  # fmt: skip
def test_other_settings_redo_everything(finished, capsys, arguments):
    capsys.readouterr()
    assert rerun(finished, *arguments) == 3
    assert statuses(capsys) == ["done"] * 3 + ["failed"]


@pytest.mark.slow(reason="ten runs of a collection")
@pytest.mark.parametrize(
    "change", ["edited", "added", "removed", "mended", "mask", "labels", "gallery", "foreign", "fit", "record"]
)
def test_any_change_redoes_everything(finished, capsys, change):
    capsys.readouterr()
    done = 3
    if change == "edited":
        photograph(finished / "in" / "1.png", 8)
    elif change == "added":
        photograph(finished / "in" / "9.png", 9)
        done = 4
    elif change == "removed":
        (finished / "in" / "1.png").unlink()
        done = 2
    elif change == "mended":
        photograph(finished / "in" / "prose.jpg", 9)
        done = 4
    elif change == "mask":
        (finished / "out" / "1_mask.png").unlink()
    elif change == "labels":
        (finished / "out" / "1_labels.png").unlink()
    elif change == "gallery":
        (finished / "out" / "gallery.html").unlink()
    elif change == "foreign":  # the mask of the photograph by itself
        assert segment(finished / "in" / "1.png", "--out", finished / "out", "--save", "mask") == 0
    elif change == "fit":
        (finished / "f").unlink()
    else:
        (finished / "out" / "run.json").write_text('{"by": "vitnp", "rerun": [1]}')
    assert rerun(finished) == (0 if change == "mended" else 3)
    assert statuses(capsys).count("done") == done
    assert rerun(finished) == (0 if change == "mended" else 3)
    assert statuses(capsys).count("skipped") == done


def test_a_run_that_fails_leaves_no_record_of_the_one_before(finished):
    with pytest.raises(UsageError, match="got 200"):
        rerun(finished, "--classes", 200)
    assert "run.json" not in files(finished / "out")
    assert rerun(finished) == 3 and "run.json" in files(finished / "out")


# --- Files of other programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.json", "gallery.html", "contact-sheet.png", "0_mask.png", "0_labels.png"])
def test_foreign_files_are_replaced_with_overwrite_only(collection, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    arguments = [collection / "x", "--classes", 2, "--out", tmp_path, "--save", "mask"]
    about_the_run = name in RUN_FILES
    try:
        status = segment(*arguments)
    except OutputError as error:  # `vitnp.cli.shared.run` makes it a message and status 2
        assert about_the_run and name in str(error)
    else:
        assert status == 3 and not about_the_run and name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert segment(*arguments, "--overwrite") == 0
    assert (tmp_path / name).read_bytes() != b"mine"


def test_save_collection_replaces_no_other_file(collection, tmp_path):
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


# --- Errors ----------------------------------------------------------------------------------------------------------


def test_nothing_readable_is_status_2_with_every_file_listed(tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    assert segment(tmp_path, "--classes", 1, "--out", tmp_path / "o", "--json") == 2
    out, err = capsys.readouterr()
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["failed", "failed"]
    assert "2 of 2 failed" in err and "a.jpg" in err and "b.jpg" in err and not files(tmp_path / "o")


@pytest.mark.slow(reason="starts a process per case")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "5"], "got 5"),
        (["--classes", "300"], "got 300"),
        (["--classes", "0"], "0"),
        (["--classes", "2", "--levels", "image"], "--levels"),
        (["--levels", "all", "--regions", "magic"], "magic"),
        (["--levels", "all", "--out", "/proc/nowhere"], "/proc/nowhere"),
        (["--levels", "all", "--fit-to", "/proc/nowhere/f"], "/proc/nowhere"),
    ],
)
def test_wrong_usage_is_one_message(collection, tmp_path, arguments, message):
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
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and message in run.stderr
    assert not RUN_FILES & files(tmp_path)


@pytest.mark.slow(reason="runs a collection")
def test_a_full_disk_is_one_message_and_leaves_complete_files(collection, tmp_path):
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
        # Labels and masks are below the limit, the gallery is not.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode in (2, 3) and "Traceback" not in run.stderr and "vitnp:" in run.stderr
    assert not [name for name in files(tmp_path) if ".part" in name or "vitnp-features" in name]
    assert "run.json" not in files(tmp_path / "o") or run.returncode == 3


@pytest.mark.slow(reason="interrupts a running command")
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("cache", [False, True])
def test_an_interrupted_run_says_what_is_kept_and_a_rerun_continues(tmp_path, cache):
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


def test_stamps_name_the_photograph_and_the_settings(outputs, collection):
    from vitnp.io.decode import file_hash

    facts = json.loads((outputs / "run.json").read_text())["rerun"]
    for kind, wanted in (("mask", "results"), ("overlay", "results"), ("labels", "labels")):
        assert stamp(outputs / "x" / f"1_{kind}.png") == {
            "vitnp:parameters": facts[wanted], "vitnp:photograph": file_hash(collection / "x" / "1.png")
        }  # fmt: skip


def attributes(thing, skip):
    """Yield the attributes of an object and of the objects of vitnp that it holds: name and value."""
    for name, value in vars(thing).items():
        if name not in skip:
            yield name, value
            if type(value).__module__.startswith("vitnp.") and hasattr(value, "__dict__"):
                yield from attributes(value, skip)


def test_memory_of_a_photograph_is_a_few_kilobytes(builtin, collection, tmp_path):
    """What a run keeps per photograph, apart from arrays over all photographs."""
    import pickle

    found = [Photograph(path, path) for path in sorted((collection / "x").glob("*.png"))] * 3
    segmenter = Segmenter(builtin, 3, short_side=96, regions=RegionRule("components", smallest=0.0))
    run = CollectionRun(segmenter, found, output_stems(found, tmp_path), ["mask"], out=tmp_path)
    list(run.outcomes())
    checked = 0
    for name, value in attributes(run, skip=("photographs", "stems", "vit", "settings", "parameters", "_arguments")):
        if isinstance(value, (dict, list)) and len(value) >= len(found):
            assert len(pickle.dumps(value)) < 2000 * len(found), name
            checked += 1
    assert checked > 3


class NamesWriter:
    """Write the names of the photographs, in the simplest way that makes an output of a collection."""

    def __init__(self, path):
        self._path, self._names = path, []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            write_json(self._path, {"software": "vitnp", "names": self._names})

    def add(self, photograph):
        self._names.append((photograph.name, *photograph.shape, photograph.labels))


def test_a_row_of_the_table_makes_an_output_of_a_collection(builtin, collection, tmp_path, monkeypatch):
    def run():
        found = find_photographs([collection / "x"])
        segmenter = Segmenter(builtin, short_side=96, cache=tmp_path / "cache")
        run = CollectionRun(segmenter, found, output_stems(found, tmp_path / "o"), ["mask"], out=tmp_path / "o")
        return [outcome.status for outcome in run.outcomes()]

    assert run() == ["done"] * 4
    row = collection_outputs.CollectionOutput("names.json", lambda path, info: NamesWriter(path))
    monkeypatch.setattr(collection_outputs, "COLLECTION_OUTPUTS", (*collection_outputs.COLLECTION_OUTPUTS, row))
    assert run() == ["done"] * 4
    names = json.loads((tmp_path / "o" / "names.json").read_text())["names"]
    assert names == [[f"{number}.png", 96, 128, [1]] for number in range(4)]
    assert run() == ["skipped"] * 4
    (tmp_path / "o" / "names.json").write_text("mine")
    with pytest.raises(OutputError, match="names.json"):
        run()

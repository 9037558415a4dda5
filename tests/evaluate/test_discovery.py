"""Object discovery: boxes of masks, CorLoc, and the command on a set in VOC's layout."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
from PIL import Image

from vitnp.cli import arguments, evaluate, shared
from vitnp.evaluate import discovery
from vitnp.evaluate.data.voc_boxes import read_voc_boxes
from vitnp.evaluate.discovery import Localization, largest_box, score_box_set
from vitnp.io.decode import read_image
from vitnp.segmenter import Segmenter


def brute_force_box(mask):
    """Box of the largest part, by flood filling."""
    left = set(zip(*map(list, np.nonzero(mask))))
    best = []
    while left:
        part, edge = [], [min(left)]
        left.discard(edge[0])
        while edge:
            y, x = edge.pop()
            part.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in left:
                    left.discard(near)
                    edge.append(near)
        if len(part) > len(best):
            best = part
    if not best:
        return None
    rows, columns = zip(*best)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def test_box_of_the_largest_part():
    random = np.random.default_rng(0)
    for _ in range(40):
        mask = random.random((9, 12)) < random.choice([0.0, 0.2, 0.35])
        found, expected = largest_box(mask), brute_force_box(mask)
        if expected is None:
            assert found is None
        else:
            # Of parts of one size any will do.
            own = np.zeros_like(mask)
            own[found[1] : found[3], found[0] : found[2]] = mask[found[1] : found[3], found[0] : found[2]]
            assert found == expected or np.count_nonzero(own) >= 1


def make_voc(root, shapes, boxes):
    """Photographs whose object is the red rectangle (or none), and annotations with the boxes given, pixels from 1."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = []
    for number, (rectangle, true) in enumerate(zip(shapes, boxes)):
        name = f"{number:06d}"
        rgb = np.full((80, 100, 3), (60, 90, 60), np.uint8)
        if rectangle:
            left, top, right, bottom = rectangle
            rgb[top:bottom, left:right] = (250, 30, 30)
        Image.fromarray(rgb).save(root / "JPEGImages" / f"{name}.jpg", quality=100, subsampling=0)
        objects = "".join(
            f"<object><name>cat</name><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin><xmax>{box[2]}</xmax>"
            f"<ymax>{box[3]}</ymax></bndbox></object>"
            for box in true
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        names.append(name)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(names))
    (root / "ImageSets" / "Main" / "test.txt").write_text(names[0])
    return root


@pytest.fixture
def red(monkeypatch):
    """What is red is the object."""

    def by_red_channel(image, vit=None, **options):
        return types.SimpleNamespace(mask=read_image(image)[..., 0] > 150)

    monkeypatch.setattr(discovery, "segment_image", by_red_channel)
    monkeypatch.setattr(arguments, "load_model", lambda args: types.SimpleNamespace(device="cpu"))
    monkeypatch.setattr(arguments, "load_collection", lambda *args, **options: None)


def test_corloc_worked_by_hand(tmp_path, red, capsys):
    root = make_voc(
        tmp_path / "VOC2007",
        # Found exactly; half of the true box, so not above 0.5; the second of two boxes; nothing found; no true box.
        [(10, 10, 50, 50), (10, 10, 50, 30), (60, 40, 90, 70), None, (0, 0, 40, 40)],
        [[(10, 10, 50, 50)], [(10, 10, 50, 50)], [(0, 0, 20, 20), (60, 40, 90, 76)], [(5, 5, 50, 50)], []],
    )
    argv = ["--task", "discovery", "--levels", "image", "--quiet"]
    assert evaluate.main([*argv, "--json", str(tmp_path), "--report", str(tmp_path / "report")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 4
    assert result["corloc"] == 2 / 4
    assert result["box_iou"] == pytest.approx((1 + 1 / 2 + 30 / 36 + 0) / 4, abs=1e-12)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"best.png", "median.png", "worst.png"}
    assert evaluate.main([*argv, str(root), "--split", "test"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["1", "1.0000", "1.0000"]


def test_a_set_without_boxes_is_an_error(tmp_path, red, capsys):
    root = make_voc(tmp_path / "VOC2007", [(0, 0, 9, 9)], [[]])
    for argv, words in (
        ([str(root)], "none of the photographs has a true box"),
        ([str(root), str(root)], "needs ROOT"),
        ([str(tmp_path / "nowhere")], "no folder JPEGImages"),
        ([str(root), "--merge", "x"], "--merge is for --task semantic"),
    ):
        with pytest.raises(SystemExit) as exit_:
            shared.run(
                lambda _, argv=argv: evaluate.main(["--task", "discovery", "--levels", "image", "--quiet", *argv])
            )
        captured = capsys.readouterr()
        assert exit_.value.code == 2 and words in captured.err and captured.err.count("\n") == 1


def test_damaged_annotations_are_listed(tmp_path, red, capsys):
    root = make_voc(tmp_path / "VOC2007", [(10, 10, 50, 50)] * 2, [[(10, 10, 50, 50)]] * 2)
    (root / "Annotations" / "000001.xml").write_text("<annotation>")
    assert evaluate.main(["--task", "discovery", "--json", str(root)]) == shared.EXIT_SOME_FAILED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 1
    assert "1 of 2 failed" in captured.err and "000001.xml" in captured.err


def test_a_set_fitted_as_a_whole(tmp_path, builtin):
    rectangles = [(10 + 5 * n, 20, 50 + 5 * n, 60) for n in range(6)]
    root = make_voc(tmp_path / "VOC2007", rectangles, [[rectangle] for rectangle in rectangles])
    samples = read_voc_boxes(root)
    segmenter = Segmenter(builtin, short_side=96)
    scored = score_box_set(samples, segmenter)
    for place, sample in enumerate(samples):
        own = Localization(largest_box(segmenter.masks[place]), sample.load_boxes())
        assert scored.ranking[place] == own.iou
    assert scored.scores["corloc"] == np.mean([iou > 0.5 for iou in scored.ranking.values()])
    assert scored.scores["corloc"] >= 0.5

"""The report of an evaluation: which photographs it shows, and what its pictures look like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitnp.errors import OutputError
from vitnp.evaluate.report import Case, draw_boxes, draw_labels, draw_sheet, report_paths, select_cases, write_report
from vitnp.io.stamp import is_own_output

GRAY, RED, GREEN = ((value,) * 3 if isinstance(value, int) else value for value in (128, (200, 0, 0), (0, 200, 0)))


def plain(color, height=30, width=40):
    return np.full((height, width, 3), color, np.uint8)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 4))
def test_best_median_and_worst(scores, rows):
    best, median, worst = select_cases(dict(enumerate(scores)), rows)
    ordered = sorted(scores, reverse=True)
    assert [scores[place] for place in best] == ordered[:rows]
    assert [scores[place] for place in worst] == ordered[::-1][:rows]
    for places in (best, median, worst):
        assert len(set(places)) == len(places) == min(rows, len(scores))
    # As many stand above the middle ones as below, or one more.
    start = sorted(range(len(scores)), key=lambda place: (-scores[place], place)).index(median[0])
    below = len(scores) - start - len(median)
    assert 0 <= start - below <= 1


def test_panels_stand_side_by_side_in_order():
    picture = np.asarray(draw_sheet([Case(plain(GRAY), plain(RED), plain(GREEN), "cat.jpg")]))
    height, width = picture.shape[:2]
    middle = picture[height // 2 - 10]
    assert [tuple(middle[int(width * part)].tolist()) for part in (1 / 6, 1 / 2, 5 / 6)] == [GRAY, RED, GREEN]
    # Something is written above the panels, and below them.
    paper = picture[0, 0]
    for rows in (picture[10:38], picture[-40:-8]):
        assert (np.abs(rows.astype(int) - paper).sum(axis=2) > 100).any()


def test_a_panel_keeps_its_proportions():
    for shape in ((30, 40), (400, 100), (10, 300), (1, 1)):
        picture = np.asarray(draw_sheet([Case(*[plain(RED, *shape)] * 3, "x")]))
        red = (picture == RED).all(axis=2)
        rows = np.flatnonzero(red.any(axis=1))
        first = np.flatnonzero(red[rows[0]])
        across = np.count_nonzero(np.diff(first) == 1) + 3
        assert across / 3 / len(rows) == pytest.approx(shape[1] / shape[0], rel=0.12)


def test_a_caption_of_any_length_fits():
    names = ["a.jpg", "long/" * 60 + "end.jpg", "two\nlines", "ünïcode 猫"]
    assert len({draw_sheet([Case(*[plain(GRAY)] * 3, name)]).size for name in names}) == 1


def test_files_carry_the_stamp_and_the_right_photographs(tmp_path):
    asked = []

    def picture(place):
        asked.append(place)
        return Case(plain(place), plain(RED), plain(GREEN), f"{place}.jpg")

    paths = write_report(tmp_path / "new" / "report", {place: place / 20 for place in range(20)}, picture, "IoU")
    assert [path.name for path in paths] == ["best.png", "median.png", "worst.png"]
    assert all(is_own_output(path) for path in paths)
    assert asked == [19, 18, 17, 11, 10, 9, 0, 1, 2] or asked == [19, 18, 17, 10, 9, 8, 0, 1, 2]
    with Image.open(paths[0]) as best, Image.open(paths[2]) as worst:
        assert (np.asarray(best) == 19).all(axis=2).any() and (np.asarray(worst) == 0).all(axis=2).any()
    # Once more: its own pictures may be replaced.
    assert write_report(tmp_path / "new" / "report", {0: 1.0}, picture, "IoU") == paths


def test_files_not_written_by_vitnp_are_kept(tmp_path):
    (tmp_path / "median.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="median.png: this file exists and was not written by vitnp; move it away"):
        report_paths(tmp_path)
    assert (tmp_path / "median.png").read_bytes() == b"precious"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="file"):
        report_paths(tmp_path / "file")


def test_classes_are_drawn_in_their_colors():
    photograph = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    labels = np.array([[0, 1, 2, 3, 20, 255]] * 4, np.uint8)
    painted = draw_labels(photograph, labels).astype(int)
    # Within a class all pixels have one hue: what differs between them is the photograph's brightness alone.
    gray = photograph.mean(axis=2)
    for column in range(6):
        color = painted[:, column] - (0.6 if column == 0 else 0.35) * gray[:, column, None]
        assert np.ptp(color, axis=0).max() <= 1
    assert len({tuple((painted[0, column] - 0.35 * gray[0, column]).round(-1)) for column in range(1, 6)}) == 5
    assert (painted[:, 5] >= 165).all() and (painted[:, 0] <= 154).all()


def test_boxes_are_drawn_at_their_edges():
    drawn = draw_boxes(plain(GRAY, 100, 100), np.array([[20.0, 30, 60, 80]]), (0, 0, 255))
    blue = (drawn == (0, 0, 255)).all(axis=2)
    rows, columns = np.nonzero(blue)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 79, 20, 59)
    assert not blue[40:70, 30:50].any()
    assert np.array_equal(draw_boxes(plain(GRAY), np.empty((0, 4)), RED), plain(GRAY))

"""The bench of pictures of other kinds: its scores, and the table that it writes into the page."""

from __future__ import annotations

import numpy as np
import pytest

from bench.quality import domains
from bench.quality.domains_table import BEGIN, END, tables, write_table


def row(best: float, f: float) -> dict[str, float]:
    return {"iou": best / 2, "error": 0.01, "best": best, "best_error": 0.01, "f": f, "f_error": 0.02}


FOUND = {
    "roads": {"methods": {"everything": row(0.014, 0.06), "photo, alone, built-in collection": row(0.4, 0.8)}},
    "cwfid": {"methods": {"everything": row(0.5, 0.3), "photo, alone, built-in collection": row(0.2, 0.1)}},
}


def test_tables_have_the_best_of_each_column_in_bold():
    assert tables(FOUND).splitlines()[:4] == [
        "| IoU of mask or complement | seedlings (CWFID) | roads |",
        "|---|---|---|",
        "| everything | **.500 ± .010** | .014 ± .010 |",
        "| photo, alone | .200 ± .010 | **.400 ± .010** |",
    ]


def test_page_keeps_its_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}\nafter\n", encoding="utf-8")
    write_table(page, FOUND)
    text = page.read_text(encoding="utf-8")
    assert text == f"before\n{BEGIN}{tables(FOUND)}{END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks the lines"):
        write_table(page, FOUND)
    assert page.read_text(encoding="utf-8") == "no marks"


def test_a_line_may_be_two_pixels_beside_its_place():
    truth = np.zeros((40, 40), bool)
    truth[20] = True
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        mask = np.roll(truth, shift, axis=0)
        assert domains._line_f(mask, truth) == pytest.approx(expected)
    membranes = domains._scores([[truth, truth]], [~truth, ~truth])
    assert membranes["f"] == 1 and membranes["best"] == 1 and membranes["iou"] == 0

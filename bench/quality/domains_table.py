"""The tables of docs/domains.md, from the scores of ``python -m bench domains``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: python -m bench domains -->\n", "<!-- end of table -->"

# Titles of known folders; others are called by their names.
TITLES = {
    "cwfid": "seedlings (CWFID)",
    "dsbowl2018-nuclei": "nuclei (Data Science Bowl 2018)",
    "crackforest": "cracks in roads (CrackForest)",
    "unet-membrane-isbi2012": "cells and membranes (ISBI 2012)",
    "magnetic-tile": "defects of tiles (Magnetic-tile)",
}


def write_table(page: Path, domains: Mapping[str, Any]) -> None:
    """Replace the tables of a page, between its two marks."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise SystemExit(f"{page} lacks the lines {BEGIN.strip()} and {END} that enclose the tables")
    page.write_text(before + BEGIN + tables(domains) + END + after, encoding="utf-8")


def tables(domains: Mapping[str, Any]) -> str:
    """Return three tables in Markdown: one row per method, one column per domain, the best of each column in bold.

    Parameters
    ----------
    domains : mapping
        By folder ``{"methods": {name: {"iou", "error", "best", "best_error", "f", "f_error"}}}``.
    """
    names = [name for name in TITLES if name in domains] + [name for name in domains if name not in TITLES]
    parts = []
    for title, score, error in (
        ("IoU of mask or complement", "best", "best_error"),
        ("F within 2 pixels", "f", "f_error"),
        ("IoU of the mask", "iou", "error"),
    ):
        head = " | ".join([title, *(TITLES.get(name, name) for name in names)])
        lines = [f"| {head} |", "|---" * (len(names) + 1) + "|"]
        for method in domains[names[0]]["methods"]:
            cells = [_cell(domains[name]["methods"], method, score, error) for name in names]
            lines.append("| " + " | ".join([method.removesuffix(", built-in collection"), *cells]) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(methods: Mapping[str, Any], method: str, score: str, error: str) -> str:
    means = {name: f"{each[score]:.3f}" for name, each in methods.items()}
    text = f"{means[method].lstrip('0')} ± {methods[method][error]:.3f}".replace("± 0.", "± .")
    return f"**{text}**" if means[method] == max(means.values()) else text

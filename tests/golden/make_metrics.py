"""Generate metrics.json: scores of small maps by pysodmetrics, the common toolbox of the field.

Run it in an environment of its own that has pysodmetrics (made with version 1.6.2):

    python tests/golden/make_metrics.py

The maps are computed in integers, so that they are the same on every machine. Their values (j + 1/2) / 256 differ from
all thresholds k / 255, and no centroid is halfway between two pixels, where the toolbox rounds to the even pixel and
the authors' own code rounds up.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

CASES = {
    # name: rows, columns, center row, center column, squared radius, how far the map follows the truth (0 to 4)
    "tiny": (3, 4, 1, 1, 1, 2),
    "wide": (17, 41, 5, 12, 40, 2),
    "tall": (53, 20, 40, 9, 70, 1),
    "corner": (24, 31, 0, 30, 90, 3),
    "one pixel": (12, 15, 7, 4, 0, 4),
    "nearly all": (16, 19, 7, 9, 120, 2),
    "unrelated": (33, 29, 18, 11, 60, 0),
    "photograph": (180, 240, 80, 100, 3500, 2),
    "full": (10, 12, 5, 5, 1000, 3),
}


def make_case(
    rows: int, columns: int, row: int, column: int, radius2: int, strength: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a soft map, float64 in 0..1, and its truth, a disc, both (rows, columns)."""
    i, j = np.mgrid[:rows, :columns]
    truth = (i - row) ** 2 + (j - column) ** 2 <= radius2
    texture = (37 * i + 101 * j + 13 * i * j + 7 * i * i) % 256
    levels = (strength * 255 * truth + (4 - strength) * texture) // 4
    return (levels + 0.5) / 256, truth


def main() -> None:
    import py_sod_metrics

    golden = {}
    for name, parameters in CASES.items():
        soft, truth = make_case(*parameters)
        structure, error, f_measure = (
            py_sod_metrics.Smeasure(alpha=0.5),
            py_sod_metrics.MAE(),
            py_sod_metrics.Fmeasure(beta=0.3),
        )
        for metric in (structure, error, f_measure):
            metric.step(soft, truth, normalize=False)
        golden[name] = {
            "max_f": float(f_measure.get_results()["fm"]["curve"].max()),
            "mae": float(error.get_results()["mae"]),
            "s_measure": float(structure.get_results()["sm"]),
        }
    path = pathlib.Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

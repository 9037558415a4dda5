"""Generate coco.json: encodings of masks and of vitnp's polygons by pycocotools, the reference code of the COCO format.

Run it from the checkout's root in an environment that has pycocotools and NumPy (made with version 2.0.11):

    PYTHONPATH=. python tests/golden/make_coco.py

The masks are computed in integers, so that they are the same on every machine.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

CASES = {
    # name: rows, columns, kind
    "empty": (5, 7, "empty"),
    "full": (6, 4, "full"),
    "one pixel off": (1, 1, "empty"),
    "one pixel on": (1, 1, "full"),
    "row": (1, 23, "texture"),
    "column": (19, 1, "texture"),
    "first pixel": (4, 5, "first"),
    "last pixel": (4, 5, "last"),
    "checks": (6, 7, "checks"),
    "texture": (13, 17, "texture"),
    "ring": (24, 31, "ring"),
    "rings": (40, 40, "rings"),
    "holes": (21, 26, "holes"),
    "photograph": (375, 500, "ring"),
    "tall": (2000, 30, "ring"),
}


def make_mask(rows: int, columns: int, kind: str) -> np.ndarray:
    """Return a mask, bool (rows, columns)."""
    i, j = np.mgrid[:rows, :columns]
    # Squared distance from the middle, scaled so that the picture's edge is at about 1000.
    radius2 = 1000 * (2 * i + 1 - rows) ** 2 // rows**2 + 1000 * (2 * j + 1 - columns) ** 2 // columns**2
    return {
        "empty": radius2 < 0,
        "full": radius2 >= 0,
        "first": (i == 0) & (j == 0),
        "last": (i == rows - 1) & (j == columns - 1),
        "checks": (i + j) % 2 == 0,
        "texture": (37 * i + 101 * j + 13 * i * j + 7 * i * i) % 11 < 6,
        "ring": (radius2 < 700) & (radius2 >= 150),
        "rings": radius2 // 120 % 2 == 0,
        "holes": ~((i % 5 == 2) & (j % 4 < 2) & (j > 2) | (i % 5 == 3) & (j % 4 == 2)),
    }[kind]


def main() -> None:
    from pycocotools import mask as coco

    from vitnp.masks.contours import polygons

    golden = {}
    for name, (rows, columns, kind) in CASES.items():
        mask = make_mask(rows, columns, kind)
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        outlines = polygons(mask)
        filled = coco.merge(coco.frPyObjects(outlines, rows, columns)) if outlines else encoded
        golden[name] = {
            "counts": encoded["counts"].decode(),
            "area": int(coco.area(encoded)),
            "bbox": coco.toBbox(encoded).astype(int).tolist(),
            "polygons": outlines if rows * columns < 10_000 else None,
            "filled": filled["counts"].decode(),
        }
    lines = (f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in golden.items())
    pathlib.Path(__file__).with_name("coco.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

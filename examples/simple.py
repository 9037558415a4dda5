"""A mask in five lines.

Run it from the checkout, after ``python -m pip install .``, on the sample photograph or on your own::

    python examples/simple.py
    python examples/simple.py cat.jpg dog.jpg --out OUT/

It prints the folder that it writes to: a temporary one, unless ``--out`` names another.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import vitnp

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "tests" / "photographs"


def main() -> None:
    """Segment each photograph by itself and save its mask, overlay and cutout."""
    parser = argparse.ArgumentParser(description="Segment photographs, one by one.")
    parser.add_argument("photographs", nargs="*", type=Path, default=[PHOTOGRAPHS / "coffee.jpg"])
    parser.add_argument("--out", type=Path, help="folder to write to (a temporary one)")
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="vitnp-simple-"))

    for photograph in args.photographs:
        result = vitnp.segment_image(photograph)
        print(f"{photograph.name}: {result.mask.mean():.0%} foreground, confidence {result.confidence:.2f}")
        print(f"  boxes (x, y, width, height): {result.boxes()}")
        result.save(out / photograph.stem, ["mask", "overlay", "cutout"])
    print(f"masks, overlays and cutouts are in {out}")


if __name__ == "__main__":
    main()

"""A collection: segment photographs together, find classes without labels, and predict a new photograph.

Run it from the checkout, after ``python -m pip install .``::

    python examples/collection.py
    python examples/collection.py PHOTOS/*.jpg --classes 20 --out OUT/

With no arguments it fits four of the sample photographs and predicts the fifth. Four photographs show how the calls fit
together; masks and classes that are worth looking at take thirty photographs or more.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import vitnp

PHOTOGRAPHS = Path(__file__).resolve().parent.parent / "tests" / "photographs"


def main() -> None:
    """Fit all photographs but the last, save the fitted collection, load it, and predict the last photograph."""
    parser = argparse.ArgumentParser(description="Fit a collection of photographs, then predict the last one.")
    parser.add_argument("photographs", nargs="*", type=Path, default=sorted(PHOTOGRAPHS.glob("*.jpg")))
    parser.add_argument("--classes", type=int, default=2, metavar="N", help="classes to find (2)")
    parser.add_argument("--out", type=Path, help="folder to write to (a temporary one)")
    args = parser.parse_args()
    if len(args.photographs) < 2:
        parser.error("name at least two photographs: all but the last are fitted, the last is predicted")
    out = args.out or Path(tempfile.mkdtemp(prefix="vitnp-collection-"))
    *training, new = args.photographs

    def save(index: int, result: vitnp.Segmentation) -> None:  # called from several threads, as soon as a mask is known
        result.save(out / training[index].stem)

    segmenter = vitnp.Segmenter(n_classes=args.classes).fit(training, observe=save)
    for index, photograph in enumerate(training):
        if index in segmenter.failures:  # a file that cannot be read stops nobody else
            print(f"{photograph.name}: {segmenter.failures[index]}")
            continue
        regions = segmenter.regions[index]
        # In label maps 0 is the background, so class 0 of `regions` has the label 1.
        print(f"{photograph.name}: category {segmenter.categories[index]}, labels {(regions.classes + 1).tolist()}")

    segmenter.save(out / "fitted.safetensors")
    result = vitnp.Segmenter.load(out / "fitted.safetensors").predict(new)
    result.save(out / new.stem, ["mask", "overlay"])  # and NEW_labels.png, because the collection has classes
    print(f"{new.name} (not fitted): labels {sorted(set(result.labels.ravel().tolist()) - {0})}")
    print(f"masks, overlays and the fitted collection are in {out}")


if __name__ == "__main__":
    main()

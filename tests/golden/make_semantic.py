"""Generate semantic.json: scores of small label maps by scikit-learn.

Run it in an environment of its own that has scikit-learn (made with version 1.9.1):

    python tests/golden/make_semantic.py

The maps are computed in integers, so that they are the same on every machine.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

CASES = {
    # name: rows, columns, classes, clusters, how many of 16 pixels agree, one of how many is ignored (0: none)
    "two classes": (7, 9, 2, 2, 12, 0),
    "voc": (60, 80, 21, 21, 9, 11),
    "unrelated": (31, 45, 5, 5, 0, 7),
    "missing classes": (20, 30, 40, 40, 13, 0),
    "over-clustered": (50, 64, 6, 30, 8, 13),
    "cluster 255": (64, 64, 3, 300, 4, 5),
}


def make_case(
    rows: int, columns: int, classes: int, clusters: int, agreeing: int, ignored: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the truth, with 255 for ignored pixels, and the prediction, both int64 (rows, columns)."""
    i, j = np.mgrid[:rows, :columns]
    truth = ((i * i + 3 * j) // 17 + (i + j) // 9) % min(classes, 37)
    noise = (37 * i + 101 * j + 13 * i * j) % clusters
    copies = truth + classes * ((5 * i + j) % max(clusters // classes, 1))
    predicted = np.where((7 * i + 11 * j + i * j) % 16 < agreeing, copies, noise)
    if ignored:
        truth = np.where((3 * i + 5 * j) % ignored == 0, 255, truth)
    return truth, predicted


def main() -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    golden = {}
    for name, (rows, columns, classes, clusters, *rest) in CASES.items():
        truth, predicted = make_case(rows, columns, classes, clusters, *rest)
        truth, predicted = truth[truth != 255], predicted[truth != 255]
        labels = np.arange(max(classes, clusters))
        square = confusion_matrix(truth, predicted, labels=labels)
        golden[name] = {"nonzero": [[int(a), int(b), int(square[a, b])] for a, b in np.argwhere(square)]}
        if classes == clusters:
            occurring = np.union1d(truth, predicted)
            golden[name]["iou"] = dict(
                zip(map(str, occurring), map(float, jaccard_score(truth, predicted, labels=occurring, average=None)))
            )
            golden[name]["mean"] = float(jaccard_score(truth, predicted, labels=occurring, average="macro"))
            golden[name]["accuracy"] = float(accuracy_score(truth, predicted))
            golden[name]["foreground"] = float(jaccard_score(truth > 0, predicted > 0))
    path = pathlib.Path(__file__).with_name("semantic.json")
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()

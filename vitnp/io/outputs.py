"""Outputs of one photograph: their kinds and file names."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vitnp.errors import UsageError

SUFFIXES = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "cutout": "_cutout.png",
    "soft": "_soft.png",
    "score": "_score.npy",
    "keys": "_keys.npy",
    "npz": ".npz",
}

# Written beside those above when classes are asked for.
LABELS_SUFFIX = "_labels.png"


def output_paths(stem: str | os.PathLike[str], which: Iterable[str]) -> dict[str, Path]:
    """Names of the files that :meth:`Segmentation.save` writes.

    Examples
    --------
    >>> output_paths("out/cat", ["mask"])["mask"].as_posix()
    'out/cat_mask.png'
    """
    unknown = [kind for kind in which if kind not in SUFFIXES]
    if unknown:
        raise UsageError(f"there is no output {', '.join(map(repr, unknown))}; choose among {', '.join(SUFFIXES)}")
    return {kind: Path(f"{os.fspath(stem)}{SUFFIXES[kind]}") for kind in which}


def labels_path(stem: str | os.PathLike[str]) -> Path:
    """Name of the file of classes.

    Examples
    --------
    >>> labels_path("out/cat").as_posix()
    'out/cat_labels.png'
    """
    return Path(f"{os.fspath(stem)}{LABELS_SUFFIX}")

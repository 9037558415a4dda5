"""Photographs with true foregrounds, from pairs of folders and from labeled data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitnp.evaluate.data.coco import read_coco
from vitnp.evaluate.data.labeled import Sample
from vitnp.evaluate.data.pairs import match_pairs, read_truth
from vitnp.evaluate.data.voc import read_voc
from vitnp.evaluate.metrics.saliency import iou
from vitnp.evaluate.metrics.semantic import IGNORE

PATHS = "IMAGES MASKS, or IMAGES JSON (COCO: all its objects), or VOCdevkit (all its objects)"


class Photograph(NamedTuple):
    """A photograph and its truth.

    Attributes
    ----------
    image : Path
    truth : callable
        ``truth(shape)`` returns the foreground and the pixels that count, two bool arrays of shape (rows, columns).
    """

    image: Path
    truth: Callable[[tuple[int, int]], tuple[np.ndarray, np.ndarray]]

    def iou(self, mask: np.ndarray) -> float:
        """Return the foreground IoU of a mask over the pixels that count."""
        truth, counts = self.truth(mask.shape)
        return iou(mask & counts, truth & counts)


def read_photographs(paths: Sequence[Path]) -> list[Photograph]:
    """Return the photographs of a data set; the foreground of a labeled one is whatever has a label."""
    if len(paths) == 1:
        return [_labeled(sample) for sample in read_voc(paths[0]).samples]
    if paths[1].suffix.lower() == ".json":
        return [_labeled(sample) for sample in read_coco(paths[1], paths[0]).samples]
    return [_paired(pair.image, pair.mask) for pair in match_pairs(paths[0], paths[1])[0]]


def add_paths(parser: argparse.ArgumentParser) -> None:
    """Add the paths of a data set, and its name, to a command."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=PATHS)
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")


def name_of(paths: Sequence[Path]) -> str:
    """Return the name of a data set: the folder that holds it."""
    return (paths[0] if len(paths) == 1 else paths[0].parent).resolve().name


def _paired(image: Path, mask: Path) -> Photograph:
    def truth(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return read_truth(mask, shape), np.ones(shape, bool)

    return Photograph(image, truth)


def _labeled(sample: Sample) -> Photograph:
    def truth(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        labels = sample.load_truth(shape)
        return (labels != 0) & (labels != IGNORE), labels != IGNORE

    return Photograph(sample.image, truth)

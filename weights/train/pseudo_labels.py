"""Pseudo-labels: the masks that a network's own features give of unlabeled photographs, as targets of self-training.

They are what :func:`vitnp.segment_image` answers with a fitted collection, reduced to a short side of 88 pixels:
several pixels per patch of every crop. A folder keeps them, 256 photographs per file, so that an interruption costs
little::

    labels-00000.npz
        map          uint8 (total,)     soft maps one after another, row by row; 255 is foreground
        size         int32 (n, 2)       height and width of each map; 0 and 0 if the photograph cannot be read
        confidence   float32 (n,)       see vitnp.method.confidence

Does not need torch.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from vitnp.kernels.threads import pool
from vitnp.weights.train.data.packs import Picture

from vitnp.errors import ImageError, UsageError
from vitnp.io.write import make_folder, write_npz
from vitnp.pipeline import ImagePipeline
from vitnp.progress import Progress, silent

logger = logging.getLogger(__name__)

SHORT_SIDE = 88  # pixels of a map
SHARD_SIZE = 256  # photographs per file

# A map without any foreground, or without any background, teaches nothing about objects.
_AREA_RANGE = (0.01, 0.9)


class PseudoLabels(NamedTuple):
    """Soft maps of photographs (h, w) uint8, and the confidence of each, (n,) float32."""

    maps: list[np.ndarray]
    confidence: np.ndarray

    def usable(self, min_confidence: float) -> np.ndarray:
        """Return the indices of the photographs to learn from.

        Their confidence is at least `min_confidence`, and between 1 and 90 % of them is foreground.

        Examples
        --------
        >>> half = np.array([[0, 255]], np.uint8)
        >>> labels = PseudoLabels([half, half, 0 * half], np.array([0.9, 0.1, 0.9], np.float32))
        >>> labels.usable(0.3).tolist()
        [0]
        """
        area = np.array([np.mean(soft > 127) if soft.size else 0.0 for soft in self.maps])
        low, high = _AREA_RANGE
        return np.flatnonzero((self.confidence >= min_confidence) & (area >= low) & (area <= high))


def make_pseudo_labels(
    pictures: Sequence[Picture],
    pipeline: ImagePipeline,
    folder: Path,
    *,
    n_threads: int = 1,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> PseudoLabels | None:
    """Segment photographs, or continue where an interrupted call stopped.

    Parameters
    ----------
    pictures : sequence of Picture
        Photographs; one that cannot be read is logged, and gets an empty map.
    pipeline : ImagePipeline
        Network, settings and collection.
    folder : path
        Folder of the result; created if needed. It must not hold labels of other photographs or of another pipeline.
    n_threads : int
        Number of photographs segmented at the same time; changes nothing in the result.
    progress : callable
        See :mod:`vitnp.progress`; the stage is called "labels".
    should_stop : callable
        Called before each file; when it returns True the work ends.

    Returns
    -------
    PseudoLabels or None
        In the order of the photographs; None if stopped early.

    Raises
    ------
    UsageError
        If a file in the folder is damaged.
    OutputError
        If the folder cannot be written.
    """
    make_folder(folder)
    maps: list[np.ndarray] = []
    confidence: list[np.ndarray] = []
    with progress("labels", len(pictures)) as advance:
        for start in range(0, len(pictures), SHARD_SIZE):
            if should_stop():
                return None
            shard = pictures[start : start + SHARD_SIZE]
            path = folder / f"labels-{start // SHARD_SIZE:05}.npz"
            if not path.exists():
                results = pool.map_ordered(lambda picture: _label(picture, pipeline), shard, n_threads)
                _write_shard(path, list(results))
            part = _read_shard(path, len(shard))
            maps += part.maps
            confidence.append(part.confidence)
            advance(len(shard))
    return PseudoLabels(maps, np.concatenate([np.zeros(0, np.float32), *confidence]))


def _label(picture: Picture, pipeline: ImagePipeline) -> tuple[np.ndarray, float]:
    """Return the reduced soft map of a photograph and its confidence; an empty map if it cannot be read."""
    from PIL import Image

    try:
        result = pipeline(picture.read())
    except ImageError as error:
        logger.warning("%s", error)
        return np.zeros((0, 0), np.uint8), 0.0
    height, width = result.soft.shape
    scale = min(1.0, SHORT_SIDE / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    reduced = Image.fromarray(result.soft.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.rint(np.asarray(reduced) * (255 / 65535)).astype(np.uint8), result.confidence


def _write_shard(path: Path, labels: list[tuple[np.ndarray, float]]) -> None:
    arrays = {
        "map": np.concatenate([soft.ravel() for soft, _ in labels]),
        "size": np.array([soft.shape for soft, _ in labels], np.int32),
        "confidence": np.array([confidence for _, confidence in labels], np.float32),
    }
    write_npz(path, arrays)


def _read_shard(path: Path, n_photographs: int) -> PseudoLabels:
    """Read the labels of a number of photographs; raise a UsageError if these are not in the file."""
    try:
        # Opened here, because np.load leaves the file of a damaged archive open.
        with open(path, "rb") as stream, np.load(stream) as file:
            pixels, sizes, confidence = file["map"], file["size"].astype(np.int64), file["confidence"]
        ends = np.cumsum(sizes.prod(axis=1))
        if len(confidence) != len(sizes) or len(sizes) != n_photographs or ends[-1] != len(pixels):
            raise ValueError
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile):
        raise UsageError(f"{path} is damaged; remove it to label its photographs again") from None
    return PseudoLabels(list(_split(pixels, sizes, ends)), confidence)


def _split(pixels: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> Iterator[np.ndarray]:
    for size, end in zip(sizes, ends, strict=True):
        yield pixels[end - size.prod() : end].reshape(size)

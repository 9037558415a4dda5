"""Smooth patch scores along time: each patch also listens to the patches of the neighboring frames that look like it.

There is no optical flow. A patch is matched by its key with the most similar ones of the frame before and of the frame
after, among those at the same place and around it. Their scores join its own, weighted by how similar they are, so that
an object that is not found again in a neighboring frame keeps its score. Doing so several times carries scores over as
many frames; across a cut nothing is carried.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np

Payload = TypeVar("Payload")


@dataclasses.dataclass(frozen=True)
class SmoothingConfig:
    """Constants of the smoothing.

    Attributes
    ----------
    steps : int
        Number of times that scores are exchanged with neighboring frames: the number of frames on either side that a
        frame depends on. 0 leaves scores as they are.
    reach : int
        A patch is compared with those at most so many rows and columns away.
    neighbors : int
        Number of patches of a neighboring frame that a patch listens to.
    temperature : float
        A patch of cosine c has the weight exp((c - 1) / temperature); the patch itself has the weight 1.
    cut : float
        Two frames whose patches have a median cosine to their best match below this are of two shots.
    overlap : float
        Least IoU, in patches, at which the regions of two frames are the same one (:mod:`vitnp.video.tracks`).
    hold : float
        How much nearer, as a cosine, the mean of another class must be for a track to change its class.
    """

    steps: int = 4
    reach: int = 1
    neighbors: int = 4
    temperature: float = 0.2
    cut: float = 0.8
    overlap: float = 0.25
    hold: float = 0.1


SMOOTHING = SmoothingConfig()


@dataclasses.dataclass(frozen=True, eq=False)
class Smoothable(Generic[Payload]):
    """Scores of one frame on their way through the steps, in host memory.

    Attributes
    ----------
    score : (rows, columns) float32
    confidence : float
    keys : (rows, columns, D) float32
        Keys normalized to unit length.
    fingerprint : str
        Of the frame; after the smoothing, of all frames that the score depends on.
    payload : object
        Whatever else belongs to the frame.
    """

    score: np.ndarray
    confidence: float
    keys: np.ndarray
    fingerprint: str
    payload: Payload


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """The patches of another frame that each patch of a frame listens to.

    Attributes
    ----------
    patches : (k, rows, columns) int64
        Their positions in the other frame, row by row.
    weights : (k, rows, columns) float32
        Their weights; the sum over the first axis is at most 1, and 0 stands for a place outside.
    """

    patches: np.ndarray
    weights: np.ndarray


def match_patches(keys: np.ndarray, others: np.ndarray, config: SmoothingConfig = SMOOTHING) -> Match | None:
    """Match the patches of a frame with those of a neighboring one.

    Parameters
    ----------
    keys, others : (rows, columns, D) float32
        Keys of both frames, normalized to unit length.
    config : SmoothingConfig

    Returns
    -------
    Match, or None if there is a cut between the frames
    """
    if keys.shape != others.shape:
        return None
    rows, columns, _ = keys.shape
    positions = np.arange(rows * columns).reshape(rows, columns)
    shifts = range(-config.reach, config.reach + 1)
    # The own place first, so that of equal cosines it wins.
    places = sorted(((y, x) for y in shifts for x in shifts), key=lambda place: (abs(place[0]) + abs(place[1]), place))
    cosine = np.full((len(places), rows, columns), -np.inf, np.float32)
    found = np.zeros((len(places), rows, columns), np.int64)
    for index, (y, x) in enumerate(places):
        here = _inside(y, rows), _inside(x, columns)
        there = _inside(-y, rows), _inside(-x, columns)
        # No matrix product, whose sums would depend on the number of threads.
        cosine[index][here] = np.einsum("ijk,ijk->ij", keys[here], others[there])
        found[index][here] = positions[there]
    if np.median(cosine.max(axis=0)) < config.cut:
        return None
    best = np.argsort(-cosine, axis=0, kind="stable")[: config.neighbors]
    weights = np.exp((np.take_along_axis(cosine, best, axis=0) - 1) / np.float32(config.temperature))
    return Match(np.take_along_axis(found, best, axis=0), weights / np.float32(len(best)))


def smooth(frames: Iterable[Smoothable[Payload]], config: SmoothingConfig = SMOOTHING) -> Iterator[Smoothable[Payload]]:
    """Smooth the scores of frames along time.

    At most ``steps + 2`` frames are held, whatever the length of the clip, and a frame is yielded when ``steps`` more
    have been read.

    Parameters
    ----------
    frames : iterable of Smoothable
        In the order of time.
    config : SmoothingConfig

    Yields
    ------
    Smoothable
        The same frames with smoothed scores and confidences.

    Examples
    --------
    >>> keys = np.ones((1, 1, 1), np.float32)
    >>> frames = [Smoothable(np.full((1, 1), score, np.float32), 1.0, keys, "", None) for score in (0, 1, 0)]
    >>> [round(float(frame.score[0, 0]), 2) for frame in smooth(frames, SmoothingConfig(steps=1))]
    [0.2, 0.67, 0.2]
    """
    linked = _linked(frames, config) if config.steps else ((frame, None, None) for frame in frames)
    for _ in range(config.steps):
        linked = _step(linked)
    for frame, _, _ in linked:
        yield frame


# A frame, its match with the frame before, and with the frame after; None at a cut and at the ends.
_Linked = tuple[Smoothable[Payload], "Match | None", "Match | None"]


def _linked(frames: Iterable[Smoothable[Payload]], config: SmoothingConfig) -> Iterator[_Linked[Payload]]:
    """Match each frame with the one before and the one after it."""
    before: Match | None = None
    last: Smoothable[Payload] | None = None
    for frame in frames:
        back: Match | None = None
        if last is not None:
            forth = match_patches(last.keys, frame.keys, config)
            # A cut is a cut from either side.
            back = None if forth is None else match_patches(frame.keys, last.keys, config)
            yield last, before, forth if back is not None else None
        last, before = frame, back
    if last is not None:
        yield last, before, None


def _step(linked: Iterable[_Linked[Payload]]) -> Iterator[_Linked[Payload]]:
    """Let every patch listen once to those that it is matched with."""
    before: Smoothable[Payload] | None = None
    current: _Linked[Payload] | None = None
    for following in linked:
        if current is not None:
            yield _blend(current, before, following[0]), current[1], current[2]
            before = current[0]
        current = following
    if current is not None:
        yield _blend(current, before, None), current[1], current[2]


def _blend(
    linked: _Linked[Payload], before: Smoothable[Payload] | None, after: Smoothable[Payload] | None
) -> Smoothable[Payload]:
    """Return a frame with the weighted means of its scores and of those that they are matched with."""
    frame, back, forth = linked
    total, weight = frame.score.astype(np.float64), np.ones(frame.score.shape)
    confidences, fingerprints = [frame.confidence], [frame.fingerprint]
    for match, other in ((back, before), (forth, after)):
        if match is not None and other is not None:
            total += (match.weights * other.score.ravel()[match.patches]).sum(axis=0)
            weight += match.weights.sum(axis=0)
            confidences.append(other.confidence)
            fingerprints.append(other.fingerprint)
    return dataclasses.replace(
        frame,
        score=(total / weight).astype(np.float32),
        confidence=sum(confidences) / len(confidences),
        fingerprint=hashlib.blake2b(" ".join(fingerprints).encode(), digest_size=16).hexdigest(),
    )


def _inside(shift: int, length: int) -> slice:
    """Return the places whose neighbor at a distance of `shift` is inside too."""
    return slice(max(-shift, 0), length - max(shift, 0))

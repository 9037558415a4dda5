"""Follow regions from frame to frame, and decide their classes along the way rather than in each frame by itself.

A region is carried into the next frame by the patches that its own are matched with
(:func:`vitnp.video.smoothing.match_patches`), and linked with the region there that it overlaps most, one with one.
Regions that are linked are a track. The evidence for the classes of a region is the mean over its track so far, and as
many frames ahead as scores are smoothed over: an object does not become another one, so that the past is not forgotten.
For the same reason a track keeps its class until another is clearly nearer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import numpy as np

from vitnp.video.smoothing import SMOOTHING, SmoothingConfig, match_patches

Payload = TypeVar("Payload")


@dataclasses.dataclass(frozen=True, eq=False)
class RegionEvidence(Generic[Payload]):
    """The regions of one frame, and what speaks for each class.

    Attributes
    ----------
    keys : (rows, columns, D) float32
        Keys normalized to unit length.
    patches : (G, N) bool
        Patches of each region; N is rows times columns.
    evidence : (G, K) float64
        Evidence of each region for each class, see :meth:`vitnp.method.prototypes.Prototypes.evidence`.
    fingerprint : str
        Of the frame; after the smoothing, of all frames that the evidence depends on.
    payload : object
        Whatever else belongs to the frame.
    """

    keys: np.ndarray
    patches: np.ndarray
    evidence: np.ndarray
    fingerprint: str
    payload: Payload


def link_regions(
    frame: RegionEvidence[Payload], following: RegionEvidence[Payload], config: SmoothingConfig = SMOOTHING
) -> np.ndarray:
    """Link the regions of a frame with those of the next one.

    Parameters
    ----------
    frame, following : RegionEvidence
        With G and H regions.
    config : SmoothingConfig

    Returns
    -------
    (H,) int64
        For each region of the next frame the one that it is linked with, from 0; -1 if there is none.
    """
    from scipy.optimize import linear_sum_assignment

    links = np.full(len(following.patches), -1, np.int64)
    match = match_patches(frame.keys, following.keys, config) if len(frame.patches) and len(links) else None
    if match is None:  # a cut, or nothing to link
        return links
    best = match.patches[0].ravel()
    carried = np.zeros_like(frame.patches)
    for region, patches in enumerate(frame.patches):
        carried[region, best[patches]] = True
    shared = (carried[:, None] & following.patches).sum(axis=2)
    overlap = shared / np.maximum((carried[:, None] | following.patches).sum(axis=2), 1)
    for region, other in zip(*linear_sum_assignment(overlap, maximize=True)):
        if overlap[region, other] >= config.overlap:
            links[other] = region
    return links


def smooth_evidence(
    frames: Iterable[RegionEvidence[Payload]], config: SmoothingConfig = SMOOTHING
) -> Iterator[RegionEvidence[Payload]]:
    """Take the mean of the evidence of regions along their tracks.

    A frame is yielded when ``config.steps`` more have been read, and only so many are held.

    Parameters
    ----------
    frames : iterable of RegionEvidence
        In the order of time.
    config : SmoothingConfig

    Yields
    ------
    RegionEvidence
        The same frames with the means of their evidence, to which `config.hold` is added for the class that a track has
        had until then. The largest entry decides the class.

    Examples
    --------
    >>> keys, patches = np.ones((1, 1, 1), np.float32), np.ones((1, 1), bool)
    >>> frames = [RegionEvidence(keys, patches, np.array([[each]]), "", None) for each in (0.0, 0.6, 0.0)]
    >>> [round(float(frame.evidence[0, 0]), 2) for frame in smooth_evidence(frames, SmoothingConfig(steps=1, hold=0))]
    [0.3, 0.2, 0.2]
    """
    held: deque[_Followed[Payload]] = deque()
    totals: dict[int, np.ndarray] = {}  # sum of the evidence (K,) of each track, followed by the number of frames
    decided: dict[int, int] = {}  # class of each track so far
    digest = ""
    for followed in _followed(frames, config):
        held.append(followed)
        frame, tracks = followed
        for track, evidence in zip(tracks.tolist(), frame.evidence):
            totals[track] = totals.get(track, 0.0) + np.append(evidence, 1.0)
        digest = hashlib.blake2b(f"{digest} {frame.fingerprint}".encode(), digest_size=16).hexdigest()
        if len(held) > config.steps:
            yield _mean(held.popleft(), totals, decided, config.hold, digest)
            present = {track for _, tracks in held for track in tracks.tolist()}
            totals = {track: total for track, total in totals.items() if track in present}
            decided = {track: known for track, known in decided.items() if track in present}
    while held:
        yield _mean(held.popleft(), totals, decided, config.hold, digest)


# A frame, and the number (G,) of the track of each of its regions.
_Followed = tuple[RegionEvidence[Payload], np.ndarray]


def _followed(frames: Iterable[RegionEvidence[Payload]], config: SmoothingConfig) -> Iterator[_Followed[Payload]]:
    """Give each region the number of its track: that of the region before that it is linked with, or a new one."""
    count = 0
    last: _Followed[Payload] | None = None
    for frame in frames:
        tracks = np.full(len(frame.patches), -1, np.int64)
        if last is not None:
            links = link_regions(last[0], frame, config)
            tracks[links >= 0] = last[1][links[links >= 0]]
        fresh = np.flatnonzero(tracks < 0)
        tracks[fresh] = count + np.arange(len(fresh))
        count += len(fresh)
        last = frame, tracks
        yield last


def _mean(
    followed: _Followed[Payload], totals: Mapping[int, np.ndarray], decided: dict[int, int], hold: float, digest: str
) -> RegionEvidence[Payload]:
    """Return a frame with the means of the evidence of its tracks, and note the classes that they decide."""
    frame, tracks = followed
    evidence = frame.evidence.copy()
    for region, track in enumerate(tracks.tolist()):
        evidence[region] = totals[track][:-1] / totals[track][-1]
        if track in decided:
            evidence[region, decided[track]] += hold
        decided[track] = int(evidence[region].argmax())
    return dataclasses.replace(frame, evidence=evidence, fingerprint=digest)

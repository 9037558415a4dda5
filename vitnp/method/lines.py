"""Lines: the foreground of pictures of cracks, membranes, vessels or roots.

A line is thinner than a patch, so it is found pixel by pixel. Filters of many orientations respond to dark and to
bright lines (:mod:`vitnp.refine.line_filter`). Noise and texture respond to both alike, so the responses of one sign
tell how many of the other are false. The sign with more reliable responses is that of the lines. Pixels above a
threshold that the other sign passes a tenth as often are sure, and lines are followed from there as long as the other
sign is clearly rarer. So the pictures themselves give the thresholds: a single one its own, a collection those of all.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vitnp.io.resample import bilinear, downscale, working_size
from vitnp.refine.guided_filter import fixed_point
from vitnp.refine.line_filter import WIDTHS, line_responses

# Pixels of the other sign above a threshold, for each one of the lines' sign: at sure pixels, and at those connected to
# them. The second is high because the flanks of a line respond with the other sign, so that it overestimates noise.
SURE = 0.1
CONNECTED = 0.75

# Response of a filter to the flank of a line of its width and the other sign, whose own response is 1: 2 exp(-3 / 2).
FLANK = 0.446

# Long side in pixels to which larger pictures are reduced.
WORKING_SIDE = 2048

# Responses are counted in bins, from 0; stronger ones are in the last.
_BIN = 1 / 64
_BINS = 1024

# Shape of the histograms of a picture: dark responses, bright ones.
COUNTS = (2, _BINS)


@dataclasses.dataclass(frozen=True)
class LineRule:
    """Sign and thresholds of lines, in units of :func:`vitnp.refine.line_filter.line_responses`.

    Attributes
    ----------
    bright : bool
        Whether lines are brighter than their ground.
    low, high : float
        A line is connected pixels above `low`, one of which at least is above `high`.
    """

    bright: bool
    low: float
    high: float


# No response is as strong: there are no lines.
NO_LINES = LineRule(False, 1e9, 1e9)


def count_responses(rgb: np.ndarray) -> np.ndarray:
    """Return the histograms of dark and bright responses of a picture, (2, 1024) int64, to be summed over pictures."""
    dark, bright = line_responses(_reduced(rgb))
    return np.stack([_histogram(dark), _histogram(bright)])


def fit_line_rule(counts: np.ndarray) -> LineRule:
    """Choose sign and thresholds for the responses of a picture, or of a collection.

    Parameters
    ----------
    counts : (2, 1024) int
        From :func:`count_responses`, or the sum of many.

    Returns
    -------
    LineRule
        :data:`NO_LINES` if responses of neither sign are reliable.

    References
    ----------
    R. F. Barber and E. J. Candès, "Controlling the False Discovery Rate via Knockoffs", Annals of Statistics 43, 2015:
    estimate the share of false discoveries from a control that has none but false ones, plus one.

    Examples
    --------
    >>> counts = np.zeros((2, 1024), int); counts[:, 10] = 1000; counts[0, 99] = 50
    >>> fit_line_rule(counts)
    LineRule(bright=False, low=0.171875, high=0.171875)
    """
    above = np.cumsum(np.asarray(counts)[:, ::-1], axis=1)[:, ::-1]  # responses of at least each bin's lower end
    rules = []
    for sign in (0, 1):
        discovered, false = above[sign], above[1 - sign] + 1
        rarer_half = 2 * discovered <= discovered[0]
        thresholds = []
        for share in (CONNECTED, SURE):
            bins = np.flatnonzero(rarer_half & (false <= share * discovered))
            thresholds.append(int(bins[0]) if len(bins) else None)
        low, high = thresholds
        if low is not None and high is not None:
            rules.append((int(discovered[high]), LineRule(bool(sign), low * _BIN, high * _BIN)))
    return max(rules, key=lambda rule: rule[0], default=(0, NO_LINES))[1]


def find_lines(rgb: np.ndarray, rule: LineRule | None = None) -> tuple[np.ndarray, float]:
    """Find the lines of a picture.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
        In host memory. A picture with a long side above 2048 pixels is reduced to it.
    rule : LineRule, optional
        That of a collection; by default the picture's own.

    Returns
    -------
    soft : (height, width) uint16
        Soft map in 16-bit fixed point, as :func:`vitnp.refine.refine.refine` makes it: half at the lower threshold,
        and below one half outside lines.
    confidence : float
        1 minus the share of false pixels, estimated by what the same rule finds with the other sign; 0 without lines.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rgb = rng.integers(180, 220, (128, 128, 3)).astype(np.uint8); rgb[60:63] = 100
    >>> soft, confidence = find_lines(rgb)
    >>> bool((soft[61] >= 32768).all()), confidence > 0.5
    (True, True)
    """
    dark, bright = line_responses(_reduced(rgb))
    if rule is None:
        rule = fit_line_rule(np.stack([_histogram(dark), _histogram(bright)]))
    response, control = (bright, dark) if rule.bright else (dark, bright)
    response, control = _without_flanks(response, control), _without_flanks(control, response)
    lines = _connected(response, rule)
    found, false = int(np.count_nonzero(lines)), int(np.count_nonzero(_connected(control, rule)))
    soft = np.clip(response / np.float32(2 * rule.low), 0, 1)
    soft = np.where(lines, np.maximum(soft, np.float32(0.5)), np.minimum(soft, np.float32(0.499)))
    full = rgb.shape[0], rgb.shape[1]
    if soft.shape == full:
        window = lambda rows, columns: soft[rows, columns]  # noqa: E731
    else:
        window = lambda rows, columns: bilinear(soft, full, rows=rows, columns=columns)  # noqa: E731
    return fixed_point(full, window), max(0.0, 1 - false / found) if found else 0.0


def _reduced(rgb: np.ndarray) -> np.ndarray:
    return downscale(rgb, working_size(rgb.shape[0], rgb.shape[1], WORKING_SIDE))


def _histogram(response: np.ndarray) -> np.ndarray:
    bins = np.clip(response * np.float32(1 / _BIN), 0, _BINS - 1).astype(np.int64)
    return np.bincount(bins.ravel(), minlength=_BINS)


def _without_flanks(response: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the response, 0 where it may come from the flanks of a line of the other sign."""
    from scipy import ndimage

    reach = round(2.5 * max(WIDTHS))  # of the farthest flank, sqrt(6) widths away
    return np.where(response > FLANK * ndimage.maximum_filter(other, 2 * reach + 1), response, np.float32(0))


def _connected(response: np.ndarray, rule: LineRule) -> np.ndarray:
    """Return the pixels of 8-connected components above the lower threshold that reach the higher one."""
    from scipy import ndimage

    labels, n_components = ndimage.label(response >= rule.low, np.ones((3, 3)))
    kept = np.zeros(n_components + 1, bool)
    kept[labels[response >= rule.high]] = True
    kept[0] = False
    return kept[labels]

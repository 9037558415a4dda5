"""Measure how much a pixel looks like part of a thin line, dark or bright."""

from __future__ import annotations

import numpy as np

from vitnp.io.resample import check_photograph
from vitnp.kernels.constants import LUMA

# Standard deviations across a line, in pixels: lines of about 3 to 10 pixels.
WIDTHS = (1.5, 2.0, 3.0)

# Standard deviation along a line, in pixels: longer than grains and spots, shorter than the bends of a crack.
LENGTH = 10.0

ORIENTATIONS = 16

# Side of the box, in pixels, whose mean and standard deviation contrast is measured by.
NEIGHBORHOOD = 97


def line_responses(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest response of oriented line filters, for dark and for bright lines.

    A filter is the second derivative of a Gaussian across the line, averaged along it by another, longer Gaussian. It
    answers lines of either sign alike, so that noise without lines has the same responses of both.

    Parameters
    ----------
    rgb : (height, width, 3) uint8
        In host memory. Luma alone counts.

    Returns
    -------
    dark, bright : (height, width) float32
        Largest response of 3 widths and 16 orientations, in standard deviations of the neighborhood's luma: a long line
        with a Gaussian profile of a filter's width responds with its contrast.

    Raises
    ------
    ValueError
        If the picture has another shape or dtype.

    Examples
    --------
    >>> rgb = np.full((64, 64, 3), 200, np.uint8); rgb[30:33] = 50
    >>> dark, bright = line_responses(rgb)
    >>> bool(dark[31].min() > 2 > bright[31].max())
    True
    """
    from scipy import fft, ndimage

    luma = check_photograph(rgb) @ np.array(LUMA, np.float32)
    mean = ndimage.uniform_filter(luma, NEIGHBORHOOD)
    variance = ndimage.uniform_filter((luma - mean) ** 2, NEIGHBORHOOD)
    contrast = (luma - mean) / np.sqrt(variance + 1)  # 1: the noise of rounding, where there is no contrast at all
    margin = round(3 * LENGTH)
    padded = np.pad(contrast, margin, mode="reflect")
    size = tuple(fft.next_fast_len(side, real=True) for side in padded.shape)
    spectrum = fft.rfft2(padded, size)
    down = np.float32(2 * np.pi) * fft.fftfreq(size[0])[:, None].astype(np.float32)
    right = np.float32(2 * np.pi) * fft.rfftfreq(size[1])[None].astype(np.float32)
    inside = tuple(slice(margin, margin + side) for side in luma.shape)
    dark = np.full(luma.shape, -np.inf, np.float32)
    bright = dark.copy()
    for angle in np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS:
        sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
        across, along = (right * cosine + down * sine) ** 2, (down * cosine - right * sine) ** 2
        for width in WIDTHS:
            gain = np.float32(8**0.5 * width**2)
            gaussian = np.exp(np.float32(-0.5 * width**2) * across - np.float32(0.5 * LENGTH**2) * along)
            response = fft.irfft2(spectrum * (gain * across * gaussian), size)[inside]
            np.maximum(bright, response, out=bright)
            np.maximum(dark, -response, out=dark)
    return dark, bright

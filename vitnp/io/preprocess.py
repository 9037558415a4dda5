"""Resize and normalize photographs for the network."""

from __future__ import annotations

import numpy as np

from vitnp import kernels
from vitnp.errors import UsageError

SHORT_SIDE = 320


def network_size(
    height: int,
    width: int,
    *,
    short_side: int = SHORT_SIDE,
    patch: int = 16,
    stride: int | None = None,
    max_tokens: int = 4096,
) -> tuple[tuple[int, int], bool]:
    """Compute the size at which a photograph enters the network.

    The short side becomes the multiple of the patch size nearest to `short_side` (320 gives 322 for patches of 14
    pixels), the long side the multiple nearest to that of the same aspect, each at least one patch. If this gives too
    many tokens, both sides are reduced by a common factor, as little as possible.

    Parameters
    ----------
    height, width : int
        Size of the photograph in pixels.
    short_side : int
        Requested short side in pixels.
    patch : int
        Patch size in pixels.
    stride : int, optional
        Distance between patches, at most the patch size, which is the default. A side has
        ``(side - patch) // stride + 1`` tokens.
    max_tokens : int
        Largest number of patch tokens.

    Returns
    -------
    (height, width) : (int, int)
        Multiples of the patch size.
    capped : bool
        Whether the size was reduced because of `max_tokens`.

    Raises
    ------
    UsageError
        If a number is less than 1, or the stride is larger than the patch.

    Examples
    --------
    >>> network_size(375, 500)
    ((320, 432), False)
    >>> network_size(10, 10000)
    ((32, 32768), True)
    """
    stride = patch if stride is None else stride
    for name, value in (
        ("height", height),
        ("width", width),
        ("short_side", short_side),
        ("patch", patch),
        ("stride", stride),
        ("max_tokens", max_tokens),
    ):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if stride > patch:
        raise UsageError(
            f"stride must be at most the patch size, {patch}, because a larger one leaves gaps, got {stride}"
        )

    def size_at(scale: float) -> tuple[int, int]:
        return _snap(height * scale, patch), _snap(width * scale, patch)

    def fits(size: tuple[int, int]) -> bool:
        return ((size[0] - patch) // stride + 1) * ((size[1] - patch) // stride + 1) <= max_tokens

    full = _snap(short_side, patch) / min(height, width)
    if fits(size := size_at(full)):
        return size, False
    # The number of tokens is a step function of the scale; bisection finds the largest scale that fits, to the last
    # bit.
    small, large = 0.0, full
    while small < (middle := (small + large) / 2) < large:
        small, large = (middle, large) if fits(size_at(middle)) else (small, middle)
    return size_at(small), True


def short_side_of(short_side: int | None, patch: int) -> int:
    """Return the short side in pixels at which photographs enter the network.

    This is the multiple of the patch size nearest to the requested short side, by default 320.

    Examples
    --------
    >>> short_side_of(None, 14), short_side_of(250, 16)
    (322, 256)
    """
    short_side = SHORT_SIDE if short_side is None else short_side
    if short_side < 1:
        raise UsageError(f"short_side must be at least 1, got {short_side}")
    return _snap(short_side, patch)


def _snap(side: float, patch: int) -> int:
    """Return the multiple of the patch size nearest to a side, half rounded up, at least one patch."""
    return max(1, int(side / patch + 0.5)) * patch


def normalize(rgb: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Scale an image to 0..1, subtract the mean, divide by the standard deviation, and put channels first.

    Parameters
    ----------
    rgb : array, shape (h, w, 3), uint8
    mean, std : three floats
        For R, G and B, on the scale 0..1.

    Returns
    -------
    array, shape (3, h, w), float32

    Examples
    --------
    >>> import numpy as np
    >>> normalize(np.full((1, 1, 3), 255, np.uint8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).ravel()
    array([1., 1., 1.], dtype=float32)
    """
    if kernels.device_of(rgb) == "cuda":
        return kernels.for_array(rgb).normalize(rgb, mean, std)
    unit = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32)
    unit /= np.float32(255)
    unit -= np.asarray(mean, np.float32)[:, None, None]
    unit /= np.asarray(std, np.float32)[:, None, None]
    return unit

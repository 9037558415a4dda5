"""What comes in: photographs found, read, and brought to the size and scale that the network wants."""

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
    """Size at which a photograph enters the network.

    The short side becomes the multiple of the patch nearest to `short_side` (320 gives 322 for a patch of 14), the long
    side the multiple nearest to what keeps the aspect, each at least one patch. When that makes too many tokens, both
    sides shrink by the largest common factor that doesn't.

    Parameters
    ----------
    height, width : int
        The photograph's size in pixels.
    short_side, patch : int
        In pixels.
    stride : int, optional
        Step between patches, at most the patch and by default equal to it: a side then holds
        ``(side - patch) // stride + 1`` tokens.
    max_tokens : int
        The cap on patch tokens.

    Returns
    -------
    (height, width) : (int, int)
        Multiples of the patch.
    capped : bool
        Whether `max_tokens` made it smaller.

    Raises
    ------
    UsageError
        For a number below 1, or a stride that exceeds the patch.

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
        ("short side", short_side),
        ("patch", patch),
        ("stride", stride),
        ("token limit", max_tokens),
    ):
        if value < 1:
            raise UsageError(f"the {name} is {value}; choose 1 or more")
    if stride > patch:
        raise UsageError(
            f"the stride {stride} exceeds the patch size {patch} and would leave gaps; choose 1 to {patch}"
        )

    def at(scale: float) -> tuple[int, int]:
        return _snap(height * scale, patch), _snap(width * scale, patch)

    def fits(size: tuple[int, int]) -> bool:
        return ((size[0] - patch) // stride + 1) * ((size[1] - patch) // stride + 1) <= max_tokens

    enough = _snap(short_side, patch) / min(height, width)
    if fits(size := at(enough)):
        return size, False
    # The tokens grow with the scale in steps, so bisection finds the last step that fits, to the last bit of a float.
    small, large = 0.0, enough
    while small < (middle := (small + large) / 2) < large:
        small, large = (middle, large) if fits(at(middle)) else (small, middle)
    return at(small), True


def short_side_of(asked: int | None, patch: int) -> int:
    """The short side in pixels at which the network sees photographs: the multiple of the patch nearest to what is asked
    for, by default to 320.

    Examples
    --------
    >>> short_side_of(None, 14), short_side_of(250, 16)
    (322, 256)
    """
    asked = SHORT_SIDE if asked is None else asked
    if asked < 1:
        raise UsageError(f"the short side is {asked}; choose 1 or more")
    return _snap(asked, patch)


def _snap(side: float, patch: int) -> int:
    """The multiple of the patch nearest to a side, halves upwards, never zero."""
    return max(1, int(side / patch + 0.5)) * patch


def normalize(rgb: np.ndarray, mean: tuple[float, float, float], std: tuple[float, float, float]) -> np.ndarray:
    """Scale a picture to 0..1, subtract the mean, divide by the standard deviation, channels first.

    Parameters
    ----------
    rgb : array, shape (h, w, 3), uint8
    mean, std : three floats
        On the scale 0..1.

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

"""Convert samples of other depths to eight bits."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from vitnp.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

# Pixels per band in which an image is searched for its largest value.
_BAND_PIXELS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Samples:
    """What the values of an image of more than eight bits mean.

    Attributes
    ----------
    bits : int
        Bits per sample in the file.
    significant_bits : int
        The largest value is 2**significant_bits - 1, unless values are larger: then it is that of `bits`.
    inverted : bool
        Whether white is zero.
    """

    bits: int = 8
    significant_bits: int = 8
    inverted: bool = False


SIXTEEN_BITS = Samples(16, 16)


def is_deep(mode: str) -> bool:
    """Tell whether pixels of a Pillow mode are gray of more than eight bits."""
    return mode in ("F", "I") or mode.startswith("I;16")


def resolve_samples(image: Image.Image, claimed: Samples, name: object) -> tuple[Samples, str | None]:
    """Compare the values of an image with what its file claims.

    Parameters
    ----------
    image : PIL image
    claimed : Samples
        What the file says.
    name : object
        Name of the image, for errors.

    Returns
    -------
    samples : Samples
        What the values mean.
    notice : str, optional
        What a user should know: values were scaled, or are so small that they may be of fewer bits.

    Raises
    ------
    ImageError
        If values of fewer bits than the file has were lost already, because Pillow keeps the high bytes of color.
    """
    deep = is_deep(image.mode)
    if deep and claimed.bits <= 8:
        claimed = dataclasses.replace(claimed, bits=16, significant_bits=16)
    if claimed.bits <= 8 or image.mode == "F" or not (deep or image.mode in ("L", "LA", "RGB", "RGBA")):
        return claimed, None
    bits, fewer = claimed.bits, claimed.significant_bits
    highest = _highest(image)
    full = dataclasses.replace(claimed, significant_bits=bits)
    if highest <= 0:
        return full, None
    if fewer < bits and highest < 1 << fewer:
        if not deep:
            raise ImageError(
                f"{name}: it has color of {fewer} bits in {bits}, of which Pillow keeps {fewer - 8}; "
                f"scale its values to {bits} bits, or save it with 8"
            )
        return claimed, f"its values have {fewer} bits and are scaled to {bits}"
    if highest < 1 << (bits - 2):
        shade = "white" if claimed.inverted else "black"
        return full, (
            f"its {bits}-bit values reach only {highest} of {(1 << bits) - 1}, so it is close to {shade}; "
            "if they have fewer bits, scale them"
        )
    return full, None


def _highest(image: Image.Image) -> int:
    """Return the largest value of an image; of color, of which only the high bytes are left, an upper bound."""
    if not is_deep(image.mode):
        channels = image.split()[: 1 if image.mode in ("L", "LA") else 3]
        return max(int(channel.getextrema()[1]) for channel in channels) * 256 + 255  # type: ignore[arg-type]
    rows = max(1, _BAND_PIXELS // image.width)
    tops = range(0, image.height, rows)
    return max(int(np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).max()) for top in tops)


def to_eight_bits(values: np.ndarray, name: object, samples: Samples = SIXTEEN_BITS) -> np.ndarray:
    """Convert to uint8 by the rules of :func:`vitnp.io.decode.read_image`.

    Raises
    ------
    ImageError
        If values are out of range.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "u" and size == 1:
        return values
    if kind == "b":
        return values * np.uint8(255)
    if kind == "f":
        return _from_floats(values, name, inverted=samples.inverted)
    if kind != "u" or size != 2:
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise ImageError(f"{name}: integer values must be in 0..65535, but are in {low}..{high}; rescale them")
    reduced = (values >> (samples.significant_bits - 8)).astype(np.uint8)
    return ~reduced if samples.inverted else reduced


def _from_floats(values: np.ndarray, name: object, *, inverted: bool) -> np.ndarray:
    low, high = values.min(), values.max()
    # NaN compares as false.
    if not (low >= -0.001 and high <= 1.001):
        raise ImageError(
            f"{name}: floating-point values must be in 0..1, without NaN, but are in {low:g}..{high:g}; rescale them"
        )
    unit = values.clip(0, 1)
    return ((1 - unit if inverted else unit) * 255 + 0.5).astype(np.uint8)

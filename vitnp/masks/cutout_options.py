"""Options of a cutout: what is behind the object, and how much around it."""

from __future__ import annotations

import dataclasses

from vitnp import options
from vitnp.errors import UsageError

TRANSPARENT, BLUR = "transparent", "blur"


@dataclasses.dataclass(frozen=True)
class CutoutOptions:
    """What is behind a cutout, and how much around it.

    Attributes
    ----------
    background : str
        "transparent", "blur" for the photograph's own background, blurred, or an opaque color in sRGB as CSS writes it.
    crop : str, optional
        Crop to the object's bounding box and a margin around it: in pixels, such as "20", or in percent of the box's
        longer side, such as "5%". A number is taken as pixels. Without it, cutouts have the photograph's size.

    Raises
    ------
    UsageError
        If a value is not allowed.

    Examples
    --------
    >>> CutoutOptions("#ff8800", 20).color, CutoutOptions(crop="5%").margin
    ((255, 136, 0), (5.0, True))
    """

    background: str = TRANSPARENT
    crop: str | float | None = None

    def __post_init__(self) -> None:
        crop = self.crop
        if isinstance(crop, (int, float)) and not isinstance(crop, bool):
            crop = f"{crop:.10g}"
        if not options.OPTIONS["crop"].accepts(crop):
            raise UsageError(f"crop must be {options.OPTIONS['crop'].allowed}, got {self.crop!r}")
        object.__setattr__(self, "crop", crop)
        self.color  # noqa: B018  # checks it

    @property
    def color(self) -> tuple[int, int, int] | None:
        """Red, green and blue of the background in sRGB; None if it is no color."""
        if self.background in (TRANSPARENT, BLUR):
            return None
        from PIL import ImageColor

        try:
            red, green, blue, *alpha = ImageColor.getrgb(self.background)
        except (ValueError, TypeError, AttributeError):
            alpha = [0]
        if alpha not in ([], [255]):
            allowed = options.OPTIONS["background"].allowed
            raise UsageError(f"background must be {allowed}, got {self.background!r}")
        return red, green, blue

    @property
    def margin(self) -> tuple[float, bool] | None:
        """Margin, and whether it is in percent; None if nothing is cropped."""
        return None if self.crop is None else (float(str(self.crop).rstrip("%")), str(self.crop).endswith("%"))

    @property
    def stamp(self) -> dict[str, str]:
        """Entry by which a later run recognizes the options of a file; none for the defaults."""
        if self == DEFAULT_CUTOUT:
            return {}
        return {"vitnp:cutout": f"background={self.background} crop={self.crop}"}


DEFAULT_CUTOUT = CutoutOptions()

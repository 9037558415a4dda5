"""Colors and fonts that sheets of pictures have in common."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Colors of the background, of captions and of their further lines.
PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (118, 118, 122)


@dataclasses.dataclass(frozen=True)
class Fonts:
    """The fonts of captions, and their sizes in pixels."""

    large: Font
    small: Font
    large_size: int
    small_size: int

    @classmethod
    def load(cls, large: int, small: int) -> Fonts:
        """Load Pillow's own font in two sizes."""
        from PIL import ImageFont

        return cls(ImageFont.load_default(large), ImageFont.load_default(small), large, small)

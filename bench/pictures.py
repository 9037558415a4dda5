"""The pictures of the README: what the commands it names write, as JPEG so that the checkout stays small."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from bench.photograph import SAMPLE
from vitnp import cli, segment_image

FOLDER = Path(__file__).parent / "pictures"


def main(argv: list[str] | None = None) -> int:
    """Make them anew."""
    argparse.ArgumentParser(prog="python -m bench pictures", description=__doc__).parse_args(argv)
    FOLDER.mkdir(exist_ok=True)
    result = segment_image(SAMPLE)
    cutout = result.cutout()
    panels = [Image.fromarray(result.image), result.overlay(), _on_checks(cutout)]
    path = FOLDER / f"{SAMPLE.stem}.jpg"
    _side_by_side(panels, height=300).save(path, quality=88, optimize=True)
    print(f"written to {path}")
    return cli.EXIT_OK


def _on_checks(cutout: Image.Image, size: int = 12) -> Image.Image:
    """A cutout over the chequered ground by which picture editors show transparency."""
    tile = Image.new("RGB", (2 * size, 2 * size), (238, 238, 238))
    for corner in ((0, 0), (size, size)):
        tile.paste((205, 205, 205), (*corner, corner[0] + size, corner[1] + size))
    ground = Image.new("RGB", cutout.size)
    for left in range(0, cutout.width, 2 * size):
        for top in range(0, cutout.height, 2 * size):
            ground.paste(tile, (left, top))
    ground.paste(cutout, mask=cutout.getchannel("A"))
    return ground


def _side_by_side(panels: list[Image.Image], height: int, gap: int = 6) -> Image.Image:
    scaled = [panel.resize((round(panel.width * height / panel.height), height), Image.Resampling.LANCZOS) for panel in panels]
    sheet = Image.new("RGB", (sum(panel.width for panel in scaled) + gap * (len(scaled) - 1), height), "white")
    left = 0
    for panel in scaled:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet

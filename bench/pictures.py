"""The pictures of the README: what the commands it names write, as JPEG so that the checkout stays small."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bench.scale.photograph import SAMPLE
from vitnp import segment_image
from vitnp.cli import segment, shared

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
    path = FOLDER / "chelsea.jpg"
    _side_by_side(_with_and_without(SAMPLE.with_name("chelsea.jpg")), height=250).save(path, quality=88, optimize=True)
    print(f"written to {path}")
    path = FOLDER / "contact-sheet.jpg"
    _contact_sheet().save(path, quality=85, optimize=True)
    print(f"written to {path}")
    return shared.EXIT_OK


def _with_and_without(photograph: Path) -> list[Image.Image]:
    """A photograph, what its own patches alone tell (`--levels image`), and what the built-in collection adds."""
    plain, judged = (segment_image(photograph, collection=how) for how in (None, "auto"))
    return [Image.fromarray(plain.image), plain.overlay(), judged.overlay()]


def _contact_sheet() -> Image.Image:
    """That of `python -m vitnp.segment CROPS/ --levels all --classes 5`, on five views of each sample photograph."""
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for path in sorted(SAMPLE.parent.glob("*.jpg")):
            picture = Image.open(path).convert("RGB")
            for view in range(5):
                scale = rng.uniform(0.7, 1)
                width, height = round(picture.width * scale), round(picture.height * scale)
                left, top = (
                    int(rng.integers(0, room + 1)) for room in (picture.width - width, picture.height - height)
                )
                crop = picture.crop((left, top, left + width, top + height))
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else crop
                crop.save(Path(folder) / f"{path.stem}_{view}.png")
        out = Path(folder) / "out"
        segment.main([folder, "--levels", "all", "--classes", "5", "--out", str(out), "--quiet"])
        with Image.open(out / "contact-sheet.png") as sheet:
            return sheet.convert("RGB")


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
    scaled = [
        panel.resize((round(panel.width * height / panel.height), height), Image.Resampling.LANCZOS) for panel in panels
    ]
    sheet = Image.new("RGB", (sum(panel.width for panel in scaled) + gap * (len(scaled) - 1), height), "white")
    left = 0
    for panel in scaled:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet

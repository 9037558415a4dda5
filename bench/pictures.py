"""Draw the pictures of the README, with the commands that it shows; as JPEG files, to keep the checkout small."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from bench.scale.photograph import SAMPLE
from vitnp import segment_image
from vitnp.cli import features, segment, shared, similar
from vitnp.masks.backdrop import over_color
from vitnp.masks.cutout import steep_alpha

FOLDER = Path(__file__).parent / "pictures"


def main(argv: list[str] | None = None) -> int:
    """Write them to bench/pictures/."""
    argparse.ArgumentParser(prog="python -m bench pictures", description=__doc__).parse_args(argv)
    FOLDER.mkdir(exist_ok=True)
    _save(_side_by_side(_mask_and_cutout(SAMPLE), height=300), SAMPLE.name, quality=88)
    cat = SAMPLE.with_name("chelsea.jpg")
    _save(_side_by_side(_without_and_with_collection(cat), height=250), cat.name, quality=88)
    _save(_contact_sheet(), "contact-sheet.jpg", quality=85)
    _save(_side_by_side(_edge_before_and_after(SAMPLE), height=320), "cutout-edge.jpg", quality=90)
    _save(_features(), "features.jpg", quality=82)
    _save(_similar(), "similar.jpg", quality=85)
    return shared.EXIT_OK


def _save(picture: Image.Image, name: str, quality: int) -> None:
    path = FOLDER / name
    picture.save(path, quality=quality, optimize=True)
    print(f"written to {path}")


def _mask_and_cutout(photograph: Path) -> list[Image.Image]:
    result = segment_image(photograph)
    return [Image.fromarray(result.image), result.overlay(), _on_checkerboard(result.cutout())]


def _edge_before_and_after(photograph: Path) -> list[Image.Image]:
    """Return the rim of the cup on white at 400 %: the photograph's colors up to the mask's edge, and the cutout."""
    result = segment_image(photograph)
    plain = np.dstack([result.image, steep_alpha(result.soft)])
    pictures = []
    for rgba in (plain, np.asarray(result.cutout())):
        picture = Image.fromarray(over_color(rgba[:80, 314:424], (255, 255, 255)))
        pictures.append(picture.resize((440, 320), Image.Resampling.NEAREST))
    return pictures


def _without_and_with_collection(photograph: Path) -> list[Image.Image]:
    """Return the photograph, its result with ``--levels image``, and its result with the built-in collection."""
    image_level, with_collection = (segment_image(photograph, collection=name) for name in (None, "auto"))
    return [Image.fromarray(image_level.image), image_level.overlay(), with_collection.overlay()]


def _contact_sheet() -> Image.Image:
    """Run ``python -m vitnp.segment CROPS/ --levels all --classes 5`` on five crops of each sample photograph."""
    with tempfile.TemporaryDirectory() as folder:
        _save_crops(Path(folder))
        out = Path(folder) / "out"
        segment.main([folder, "--levels", "all", "--classes", "5", "--out", str(out), "--quiet"])
        with Image.open(out / "contact-sheet.png") as sheet:
            return sheet.convert("RGB")


def _similar() -> Image.Image:
    """Run ``vitnp similar CROPS/ --query cat.jpg -k 6`` for two of the sample photographs."""
    with tempfile.TemporaryDirectory() as folder:
        _save_crops(Path(folder))
        queries = [f"--query={SAMPLE.with_name(name)}" for name in ("chelsea.jpg", "rocket.jpg")]
        out = Path(folder) / "out"
        similar.main([folder, *queries, "-k", "6", "--out", str(out), "--quiet"])
        with Image.open(out / "similar.png") as sheet:
            return sheet.convert("RGB")


def _save_crops(folder: Path) -> None:
    """Write five crops of each sample photograph, two of them mirrored."""
    rng = np.random.default_rng(0)
    for path in sorted(SAMPLE.parent.glob("*.jpg")):
        picture = Image.open(path).convert("RGB")
        for index in range(5):
            crop = _random_crop(picture, rng)
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if index % 2 else crop
            crop.save(folder / f"{path.stem}_{index}.png")


def _features() -> Image.Image:
    """Run ``vitnp features PHOTOS/ --save pca,attention --foreground --stride 8`` on the sample photographs."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = sorted(SAMPLE.parent.glob("*.jpg"))
        options = ["--save", "pca,attention", "--foreground", "--stride", "8", "--out", folder, "--quiet"]
        features.main([*map(str, photographs), *options])
        rows = [[Image.open(path).convert("RGB") for path in photographs]]
        for kind in ("pca", "attention"):
            rows.append([Image.open(Path(folder) / f"{path.stem}_{kind}.png") for path in photographs])
        strips = [_side_by_side(row, height=170) for row in rows]
    return Image.fromarray(
        np.concatenate([np.pad(strip, ((0, 6), (0, 0), (0, 0)), constant_values=255) for strip in strips])
    )


def _random_crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop a rectangle of the picture's proportions, at least 0.7 times its size."""
    scale = rng.uniform(0.7, 1)
    width, height = round(picture.width * scale), round(picture.height * scale)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def _on_checkerboard(cutout: Image.Image, size: int = 12) -> Image.Image:
    """Put a cutout on the checkerboard by which image editors show transparency."""
    tile = Image.new("RGB", (2 * size, 2 * size), (238, 238, 238))
    for corner in ((0, 0), (size, size)):
        tile.paste((205, 205, 205), (*corner, corner[0] + size, corner[1] + size))
    board = Image.new("RGB", cutout.size)
    for left in range(0, cutout.width, 2 * size):
        for top in range(0, cutout.height, 2 * size):
            board.paste(tile, (left, top))
    board.paste(cutout, mask=cutout.getchannel("A"))
    return board


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

"""Write the table of docs/checkpoints.md: the largest difference from torch of every family, dialect and feature.

    PYTHONPATH=. python tests/golden/parity_table.py [--check]

It needs torch, timm and transformers. Networks of timm and transformers, and DINOv3, are made anew with other numbers
than those of the golden files; those of DINO's and DINOv2's own code are read from tests/golden/vit, since their
checkouts may be absent. With --check nothing is written: the table is printed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping

import make_dinov3
import make_families
import numpy as np
import torch
from safetensors.numpy import save_file

from vitnp import ViT, load_vit
from vitnp.checkpoints.read import read_checkpoint
from vitnp.io.preprocess import normalize

HERE = pathlib.Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs" / "checkpoints.md"
BEGIN, END = "<!-- parity table: written by tests/golden/parity_table.py -->", "<!-- end of the parity table -->"
FEATURES = ("query", "key", "key_rotated", "value", "token", "cls", "register", "attention")
SEED = 100  # of what is made anew

# Case: network, and the code that computed what vitnp is compared with.
VIT = {
    "dino": ("DINO, a nested training checkpoint", "DINO"),
    "dinov2": ("DINOv2, blocks in chunks", "DINOv2"),
    "dinov2_registers": ("DINOv2 with registers", "DINOv2"),
    "dinov2_giant": ("DINOv2 giant, SwiGLU", "DINOv2"),
    "timm_plain": ("ViT", "timm"),
    "timm_registers": ("DINOv2 with registers", "timm"),
    "timm_giant": ("DINOv2 giant, SwiGLU", "timm"),
    "hf_vit": ("ViT", "transformers"),
    "hf_dinov2": ("DINOv2", "transformers"),
    "hf_dinov2_giant": ("DINOv2 giant, SwiGLU", "transformers"),
    "hf_dinov2_registers": ("DINOv2 with registers", "transformers"),
}
FAMILIES = {
    "timm_augreg": ("AugReg", "timm"),
    "timm_deit3": ("DeiT III", "timm"),
    "timm_flexivit": ("FlexiViT", "timm"),
    "timm_wrapper": ("AugReg in TimmWrapperModel", "transformers"),
    "deit": ("DeiT, its own file", "timm"),
    "mae": ("MAE, its own file", "timm"),
    "moco_v3": ("MoCo v3, its own file", "timm"),
    "hf_dino": ("DINO as ViTModel", "transformers"),
    "hf_vit_classifier": ("ViTForImageClassification", "transformers"),
    "hf_msn": ("MSN", "transformers"),
    "hf_mae": ("MAE", "transformers"),
    "webssl": ("Web-SSL", "transformers"),
    "franca": ("Franca, its own file", "transformers"),
}
DINOV3 = {
    "official": ("DINOv3 S, B, L", "DINOv3, written anew"),
    "official_plus": ("DINOv3 S+, H+", "DINOv3, written anew"),
    "official_7b": ("DINOv3 7B", "DINOv3, written anew"),
    "official_untied": ("DINOv3, untied final norms", "DINOv3, written anew"),
    "timm": ("DINOv3 S, B, L, 7B without biases", "timm"),
    "timm_qkvb": ("DINOv3 with biases (qkvb), satellite", "timm"),
    "timm_plus": ("DINOv3 S+, H+", "timm"),
    "transformers": ("DINOv3 S, B, L", "transformers"),
    "transformers_plus": ("DINOv3 S+, H+, satellite", "transformers"),
    "transformers_7b": ("DINOv3 7B, another base", "transformers"),
    "transformers_key_bias": ("DINOv3 with a key bias", "transformers"),
}

Difference = dict[str, float]


def largest(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], differences: Difference) -> None:
    for name, array in expected.items():
        differences[name] = max(differences.get(name, 0.0), float(np.abs(found[name] - array).max()))


def of_golden(arrays: Mapping[str, np.ndarray], folder: pathlib.Path) -> tuple[str, Difference]:
    """Return the dialect of a golden file of make_vit.py or make_dinov3.py, and the difference of each feature."""
    facts = json.loads(str(arrays["facts"]))
    files = facts.get("files") or (
        {"config.json": json.loads(facts["config.json"])} if facts.get("config.json") else {}
    )
    for name, table in files.items():
        (folder / name).write_text(json.dumps(table))
    path = folder / "model.safetensors"
    if "checkpoint.pth" in arrays:
        path = folder / "model.pth"
        path.write_bytes(arrays["checkpoint.pth"].tobytes())
    else:
        save_file({name[8:]: np.float32(a) for name, a in arrays.items() if name.startswith("weights/")}, path)
    vit = load_vit(path, heads=facts["heads"], **facts.get("load", {}))
    differences: Difference = {}
    for index, run in enumerate(facts.get("runs") or [{"layers": layers} for layers in facts["layers"]]):
        images = np.float32(arrays[f"run{index}/images"])
        for layer in run["layers"]:
            start = f"run{index}/{layer}/"
            expected = {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
            largest(vit(images, expected, layer=layer, stride=run.get("stride")), expected, differences)
    return read_checkpoint(path).dialect.name, differences


def of_family(name: str, folder: pathlib.Path) -> tuple[str, Difference]:
    """Return the dialect of a family that make_families.py makes, and the difference of each feature."""
    peer = make_families.FAMILIES[name](folder, SEED)
    vit: ViT = load_vit(folder / peer.file)
    differences: Difference = {}
    for picture in make_families.pictures(peer, SEED):
        expected = make_families.features(peer, picture)
        image = normalize(picture, vit.config.mean, vit.config.std)
        found = vit(image[None], tuple(expected))
        largest({key: array[0] for key, array in found.items()}, expected, differences)
    return read_checkpoint(folder / peer.file).dialect.name, differences


def rows() -> Iterator[str]:
    """Generate the lines of the table."""
    yield "| network | computed by | names | " + " | ".join(f"`{name}`" for name in FEATURES) + " |"
    yield "|---" * (3 + len(FEATURES)) + "|"
    for table in (VIT, FAMILIES, DINOV3):
        for name, (network, library) in table.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = pathlib.Path(scratch)
                if table is FAMILIES:
                    dialect, differences = of_family(name, folder)
                elif table is DINOV3:
                    content = make_dinov3.golden(make_dinov3.PEERS[name](SEED), SEED)
                    dialect, differences = of_golden(content, folder)
                else:
                    with np.load(HERE / "vit" / f"{name}.npz") as content:
                        dialect, differences = of_golden(dict(content), folder)
            cells = [
                f"{differences[name]:.0e}".replace("e-0", "e-") if name in differences else "" for name in FEATURES
            ]
            yield f"| {network} | {library} | {dialect} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="print the table instead of writing it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = "\n".join(rows())
    if arguments.check:
        print(table)
        return
    text = DOCS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        sys.exit(f"{DOCS} lacks the lines that mark the table: {BEGIN} and {END}")
    DOCS.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

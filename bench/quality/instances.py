"""Score the separated objects of photographs with COCO annotations: AP and AR by pycocotools, whatever the category.

The mask as a single object, its components, and its separated objects, beside MaskCut on the same keys with the same
refinement, after the repair of outlier keys that :mod:`bench.quality.peers` grants to others too. MaskCut has no
confidence: objects are ranked in the order in which they are found, or as vitnp ranks its own. Its threshold was chosen
for DINO's keys, so others are tried too; the best is an advantage that it gets from the truth.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vitnp.kernels.threads import blas

from bench import record
from bench.quality.maskcut import maskcut, refined
from bench.quality.peers import repair_outliers
from vitnp import Segmentation, load_vit
from vitnp.cli import shared
from vitnp.errors import UsageError
from vitnp.masks import components
from vitnp.method.instances import InstanceConfig, Instances, find_instances, rank
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline

MASKCUT_THRESHOLDS = (0.15, 0.4, 0.6)

# Positions in pycocotools' list of twelve scores.
_SCORES = {"AP": 0, "AP50": 1, "AR@10": 7}

# The objects of a photograph, ranked: masks (height, width) bool and their confidences.
_Objects = list[tuple[np.ndarray, float]]


def compare(result: Segmentation, thresholds: Sequence[float] = MASKCUT_THRESHOLDS) -> dict[str, _Objects]:
    """Return the objects of a photograph by each method, and by MaskCut with each threshold."""
    whole = [(result.mask, result.confidence)] if result.mask.any() else []
    separated = find_instances(result.soft, result.keys, result.image, result.confidence)
    objects: dict[str, _Objects] = {
        "vitnp, the whole mask": whole,
        "vitnp, components": _listed(_components(result)),
        "vitnp, separated objects": _listed(separated),
    }
    rows, columns, width = result.keys.shape
    keys = repair_outliers(result.keys.reshape(-1, width), (rows, columns)).reshape(result.keys.shape)
    for threshold in thresholds:
        masks = refined(maskcut(keys, threshold=threshold), result.image)
        objects[f"MaskCut, {threshold}, as found"] = _in_order(masks)
        objects[f"MaskCut, {threshold}, ranked by vitnp"] = _ranked(masks, result.confidence)
    return objects


def _components(result: Segmentation) -> Instances:
    labels = components.label(result.mask)
    return rank(labels, result.soft, result.confidence, InstanceConfig().most)


def _listed(instances: Instances) -> _Objects:
    return [(instances.labels == number, float(c)) for number, c in enumerate(instances.confidences, 1)]


def _in_order(masks: list[np.ndarray]) -> _Objects:
    return [(mask, 1 / number) for number, mask in enumerate(masks, 1)]


def _ranked(masks: list[np.ndarray], confidence: float) -> _Objects:
    """Give masks, which may overlap, the confidences that vitnp would."""
    largest = max((np.count_nonzero(mask) for mask in masks), default=1)
    objects: _Objects = []
    for mask in masks:
        alone = rank(mask.astype(np.int64), mask * np.uint16(65535), confidence, 1)
        objects.append((mask, float(alone.confidences[0]) * (np.count_nonzero(mask) / largest) ** 0.5))
    return sorted(objects, key=lambda each: -each[1])


def _encoded(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def score(annotations: Path, objects: dict[int, list[tuple[dict[str, Any], float]]]) -> dict[str, float]:
    """Return AP, AP50 and AR@10 in percent, and the share of photographs whose largest object is among the first three.

    Parameters
    ----------
    annotations : Path
        COCO's ``instances.json``.
    objects : dict of int to list
        Objects of each photograph by its id, the first ones first: run lengths of pycocotools, and confidence.
    """
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        results = [
            {"image_id": index, "category_id": 1, "segmentation": code, "score": confidence}
            for index, each in objects.items()
            for code, confidence in each
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.imgIds = sorted(objects)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    hits = []
    for index, each in objects.items():
        codes = [code for code, _ in each]
        own = [annotation for annotation in truth.loadAnns(truth.getAnnIds(index)) if not annotation["iscrowd"]]
        if own:
            largest = truth.annToRLE(max(own, key=lambda annotation: annotation["area"]))
            overlap = coco_mask.iou(codes[:3], [largest], [0]) if codes else np.zeros((1, 1))
            hits.append(overlap[:, 0] >= 0.5)
    return {
        **{name: round(100 * float(evaluation.stats[position]), 2) for name, position in _SCORES.items()},
        "first": round(100 * float(np.mean([hit[0] for hit in hits])), 1),
        "first three": round(100 * float(np.mean([hit.any() for hit in hits])), 1),
        "objects per photograph": round(len(results) / len(objects), 2),
    }


def _segmented(folder: Path, annotations: Path, pipeline: ImagePipeline) -> Iterator[tuple[int, Segmentation]]:
    """Segment the photographs that a COCO file lists, and yield the id of each with its result."""
    listed = json.loads(annotations.read_text())["images"]
    for image in listed:
        path = folder / image["file_name"]
        if not path.is_file():
            raise UsageError(f"{annotations} lists {image['file_name']}, which is not in {folder}")
        yield image["id"], pipeline(path)


def main(argv: list[str] | None = None) -> int:
    """Print the table, and write it to bench/results/instances-NAME.json."""
    args = _parse(argv)
    vit = load_vit(args.model)
    if not args.annotations.is_file():
        raise UsageError(f"{args.annotations}: no such file; name COCO's file of instances")
    pipeline = ImagePipeline.create(vit, Settings(), args.collection)
    objects: dict[str, dict[int, list[tuple[dict[str, Any], float]]]] = {}
    for index, result in _segmented(args.images, args.annotations, pipeline):
        with blas.one_blas_thread():
            for name, found in compare(result, args.thresholds or MASKCUT_THRESHOLDS).items():
                objects.setdefault(name, {})[index] = [(_encoded(mask), confidence) for mask, confidence in found]
    scores = {name: score(args.annotations, found) for name, found in objects.items()}
    measured: dict[str, Any] = {
        "images": len(next(iter(objects.values()))), "model": vit.name, "sha256": vit.sha256, "scores": scores
    }  # fmt: skip
    name = args.name or args.annotations.resolve().parent.name
    path = record.write(f"instances-{name}", measured)
    columns = list(next(iter(scores.values())))
    print(f"{measured['images']} photographs, {vit.name}\n\n{'':<36}" + "".join(f"{column:>14}" for column in columns))
    for title, row in scores.items():
        print(f"{title:<36}" + "".join(f"{row[column]:>14}" for column in columns))
    print(f"written to {path}")
    return shared.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench instances", description=__doc__.partition("\n\n")[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("annotations", type=Path, help="COCO's file of their instances")
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--collection", default="auto", help="file of a fitted collection (the built-in one)")
    parser.add_argument("--thresholds", type=float, nargs="+", metavar="T", help="of MaskCut (0.15 0.4 0.6)")
    parser.add_argument("--name", help="name of the data set in the result file (the folder's)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    shared.run(main)

"""Calibrate the confidence of single photographs with a fitted collection: 0.5 means even odds of a good mask.

Clarity and IoU of each photograph of some data sets give the two constants of :mod:`vitnp.method.confidence`, each set
weighing the same. Pictures of nothing, made here, tell how well they are known as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import rankdata

from bench import record
from bench.quality.foreground import PATHS, Photograph, name_of, read_photographs
from vitnp import load_vit
from vitnp.cli import arguments, shared
from vitnp.features.record import unit_rows
from vitnp.method import agreement
from vitnp.method import confidence as method
from vitnp.options import Settings
from vitnp.pipeline import ImagePipeline

GOOD, FAILED = 0.7, 0.5  # IoU of a good mask, and below which it is a failure
DIAGRAM = Path(__file__).parents[2] / "docs" / "confidence.png"


def main(argv: list[str] | None = None) -> int:
    """Print the constants, and how well failures are ranked; write bench/results/confidence.json and the diagram."""
    parser = argparse.ArgumentParser(prog="python -m bench confidence", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--set", dest="sets", type=Path, nargs="+", action="append", required=True, help=PATHS)
    parser.add_argument("--model", default="auto", help="checkpoint (the built-in one)")
    parser.add_argument("--collection", default="auto", help="file of a fitted collection (the built-in one)")
    parser.add_argument("--seeds", type=arguments.number(1), default=1, help="number of seeds, from 0 (1)")
    args = parser.parse_args(argv)
    vit = load_vit(args.model)
    measured = {}
    for paths in args.sets:
        photographs = read_photographs(paths)
        rows = [
            row
            for seed in range(args.seeds)
            for row in _measure(ImagePipeline.create(vit, Settings(seed=seed), args.collection), photographs)
        ]
        measured[name_of(paths)] = np.array(rows)
    pipeline = ImagePipeline.create(vit, Settings(refine="none"), args.collection)
    nothing = {name: pipeline(picture).confidence for name, picture in pictures_of_nothing().items()}
    slope, offset = calibrate(list(measured.values()))
    print(f"SLOPE, OFFSET = {slope:.2f}, {offset:.2f}  (in use: {method.SLOPE}, {method.OFFSET})")
    sets = {}
    for name, rows in measured.items():
        clarity, image, iou = rows.T
        odds = logistic(method.SLOPE * clarity + method.OFFSET)
        sets[name] = {
            "photographs": len(rows),
            "good": float((iou >= GOOD).mean()),
            "mean_confidence": float(odds.mean()),
            "auc_image_level": auc(image, iou >= FAILED),
            "auc": auc(clarity, iou >= FAILED),
            "reliability": reliability(odds, iou >= GOOD),
        }
        print(f"{name:<12}", {key: round(value, 3) for key, value in sets[name].items() if key != "reliability"})
    print(f"pictures of nothing: at most {max(nothing.values()):.3f}")
    everything = np.concatenate(list(measured.values()))
    pooled = reliability(logistic(method.SLOPE * everything[:, 0] + method.OFFSET), everything[:, 2] >= GOOD)
    _draw(pooled, {name: facts["reliability"] for name, facts in sets.items()})
    path = record.write(
        "confidence",
        {"model": vit.name, "sha256": vit.sha256, "seeds": args.seeds, "slope": slope, "offset": offset,
         "in_use": [method.SLOPE, method.OFFSET], "sets": sets, "reliability": pooled, "nothing": nothing},
    )  # fmt: skip
    print(f"written to {path} and {DIAGRAM}")
    return shared.EXIT_OK


def _measure(pipeline: ImagePipeline, photographs: Sequence[Photograph]) -> Iterator[tuple[float, float, float]]:
    """Yield clarity, confidence of the image level, and IoU of each photograph."""
    for photograph in photographs:
        result = pipeline(photograph.image)
        levels = result.levels or ()
        keys = unit_rows(result.keys.reshape(-1, result.keys.shape[2]))
        yield (
            method.clarity(agreement.combine_levels(levels), levels),
            method.image_confidence(levels[0], keys),
            photograph.iou(result.mask),
        )


def calibrate(sets: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return slope and offset of the logistic curve from clarity to good masks; each set weighs the same.

    Parameters
    ----------
    sets : sequence of (n, 3) float
        Clarity, confidence of the image level, and IoU.
    """
    clarity, _, iou = np.concatenate(sets).T
    weights = np.concatenate([np.full(len(rows), 1 / len(rows)) for rows in sets]) / len(sets)
    good = iou >= GOOD

    def loss(parameters: np.ndarray) -> float:
        logits = parameters[0] * clarity + parameters[1]
        return float(weights @ (np.logaddexp(0, logits) - good * logits))

    slope, offset = minimize(loss, np.zeros(2), method="BFGS").x
    return float(slope), float(offset)


def auc(values: np.ndarray, positive: np.ndarray) -> float:
    """Return the share of pairs, one positive and one negative, in which the positive has the larger value.

    Examples
    --------
    >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    n_positive, n_negative = np.count_nonzero(positive), np.count_nonzero(~positive)
    ranks = rankdata(values)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(ranks / (n_positive * n_negative)) if n_positive and n_negative else float("nan")


def reliability(odds: np.ndarray, good: np.ndarray, n_bins: int = 5) -> list[dict[str, float]]:
    """Return the mean confidence, the share of good masks and the number of photographs for bins of confidence."""
    bins = np.minimum((odds * n_bins).astype(int), n_bins - 1)
    return [
        {"confidence": float(odds[bins == index].mean()), "good": float(good[bins == index].mean()),
         "photographs": int(np.count_nonzero(bins == index))}
        for index in range(n_bins) if (bins == index).any()
    ]  # fmt: skip


def logistic(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x))."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def pictures_of_nothing(height: int = 320, width: int = 448) -> dict[str, np.ndarray]:
    """Return pictures without an object, (height, width, 3) uint8, by name."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    gray = {
        "uniform": np.full((height, width), 128.0),
        "gradient": columns / (width - 1) * 255,
        "diagonal gradient": (rows + columns) / (height + width - 2) * 255,
        "noise": rng.uniform(0, 255, (height, width)),
        "weak noise": 128 + rng.normal(0, 10, (height, width)),
        "stripes": 128 + 100 * np.sin(columns / 5),
        "checks": 255.0 * ((rows // 16 + columns // 16) % 2),
        "bricks": np.where((rows % 20 < 2) | ((columns + 20 * (rows // 20 % 2)) % 40 < 2), 200.0, 120.0),
    }
    pictures = {name: np.repeat(values[..., None], 3, axis=2) for name, values in gray.items()}
    pictures["colored noise"] = rng.uniform(0, 255, (height, width, 3))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal((height, width))
        cloud = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.6, (height, width))
        cloud = (cloud - cloud.min()) / np.ptp(cloud)
        pictures[f"clouds {seed}"] = np.stack([90 + 150 * cloud, 130 + 110 * cloud, 200 + 50 * cloud], axis=-1)
    return {name: values.clip(0, 255).astype(np.uint8) for name, values in pictures.items()}


def _draw(pooled: Sequence[dict[str, float]], sets: dict[str, list[dict[str, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, rows in sets.items():
        axes.plot([row["confidence"] for row in rows], [row["good"] for row in rows], marker=".", alpha=0.6, label=name)
    axes.plot([row["confidence"] for row in pooled], [row["good"] for row in pooled], "ko-", label="all")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel=f"share of masks with an IoU of at least {GOOD}")
    axes.legend(frameon=False)
    figure.savefig(DIAGRAM, dpi=120)


if __name__ == "__main__":
    shared.run(main)

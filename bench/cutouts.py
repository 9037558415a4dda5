"""Time and error of foreground colors at an object's edge, against PyMatting, on a composite whose colors are known."""

from __future__ import annotations

import argparse
from importlib import metadata

import numpy as np
from vitnp.kernels.threads import pool

from bench import record
from bench.cpu.interleave import Plan, interleave, ratio
from vitnp.cli import arguments, shared
from vitnp.masks.cutout import cutout
from vitnp.masks.foreground_colors import estimate_foreground


def main(argv: list[str] | None = None) -> int:
    """Print the figures, and write them to bench/results/cutouts.json."""
    parser = argparse.ArgumentParser(prog="python -m bench cutouts", description=__doc__)
    parser.add_argument("--height", type=arguments.number(100), default=3000, help="height in pixels (3000)")
    parser.add_argument("--width", type=arguments.number(100), default=4000, help="width in pixels (4000)")
    parser.add_argument("--edge", type=float, default=4.0, help="width of the soft edge in pixels (4)")
    parser.add_argument("--rounds", type=arguments.number(1), default=9, help="rounds, in turn (9)")
    parser.add_argument("--threads", type=arguments.number(1), default=1, help="number of threads of vitnp (1)")
    parser.add_argument("--anyway", action="store_true", help="keep samples that other programs disturbed")
    args = parser.parse_args(argv)
    try:
        from pymatting import estimate_foreground_ml
    except ImportError:
        shared.say_error("this benchmark needs PyMatting: pip install pymatting")
        return shared.EXIT_USAGE

    rgb, alpha, true = composite(args.height, args.width, args.edge)
    image, matte, soft = rgb / 255, alpha / 255, alpha.astype(np.uint16) * np.uint16(257)
    calls = {
        "vitnp": lambda: estimate_foreground(rgb, alpha),
        "vitnp, whole cutout": lambda: cutout(rgb, soft),
        "pymatting": lambda: estimate_foreground_ml(image, matte),
    }
    with pool.thread_limit(args.threads):
        positions, colors = estimate_foreground(rgb, alpha)
        theirs = 255 * estimate_foreground_ml(image, matte).reshape(-1, 3)[positions]
        plan = Plan(rounds=args.rounds, min_seconds=0.1, budget=90, keep_disturbed=args.anyway)
        timings = interleave(calls, plan)
    # An error weighs as much as it shows.
    share, true = matte.reshape(-1)[positions, None], true.reshape(-1, 3)[positions]
    mixed = rgb.reshape(-1, 3)[positions]
    errors = {"vitnp": colors, "pymatting": theirs, "photograph itself": mixed}
    measured = {
        "pixels": f"{args.width} x {args.height}",
        "edge_pixels": len(positions),
        "threads": args.threads,
        "pymatting": metadata.version("pymatting"),
        "samples_disturbed_by_other_programs_are_kept": args.anyway,
        "median_milliseconds": {name: round(1e3 * timing.seconds, 1) for name, timing in timings.items()},
        "fastest_milliseconds": {name: round(1e3 * min(timing.clean), 1) for name, timing in timings.items()},
        "rounds": {name: len(timing.clean) for name, timing in timings.items()},
        "times_faster_than_pymatting": round(ratio(timings["vitnp"], timings["pymatting"]) or float("nan"), 1),
        "mean_error_of_255_levels": {
            name: round(float((share * np.abs(found - true)).mean()), 3) for name, found in errors.items()
        },
    }
    for name, value in measured.items():
        print(f"{name}: {value}")
    print(f"written to {record.write('cutouts', measured)}")
    return shared.EXIT_OK


def composite(height: int, width: int, edge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a wavy disc of smooth colors over others, its alpha (uint8 both), and its true colors from 0 to 255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = np.arctan2(y - height / 2, x - width / 2)
    radius = min(height, width) * (0.3 + 0.05 * np.sin(7 * angle))
    alpha = (0.5 + (radius - np.hypot(y - height / 2, x - width / 2)) / edge).clip(0, 1)
    alpha = (alpha * 255 + 0.5).astype(np.uint8)
    front = np.stack([180 + 50 * np.sin(x / 60), 80 + 50 * np.cos(y / 50), np.full_like(x, 50)], axis=-1)
    back = np.stack([np.full_like(x, 50), 130 + 25 * np.sin(y / 70), 200 + 25 * np.cos(x / 80)], axis=-1)
    share = alpha[..., None] / np.float32(255)
    return (share * front + (1 - share) * back + 0.5).astype(np.uint8), alpha, front

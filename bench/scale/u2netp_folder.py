"""Cut out the photographs of a folder as rembg does with u2netp, a process for each thread; print the seconds.

Random weights, see :mod:`bench.scale.u2netp`: another method for the same user. By the clock and of the processor,
without the start. This imports nothing of vitnp::

    python -m bench.scale.u2netp_folder FOLDER OUT THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.cpu.pipeline_folder import timed
from bench.cpu.pipeline_peer import overlay
from bench.scale.u2netp import SIDE, u2netp

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

_session: list[Any] = []


def _start() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    _session.append(onnxruntime.InferenceSession(u2netp()[0], options, providers=["CPUExecutionProvider"]))


def _segment(path: str, out: str) -> None:
    """Write mask and overlay, with rembg's steps: resize, divide by the maximum, stretch the output to 0 and 1."""
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    small = np.asarray(Image.fromarray(rgb).resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    batch = ((small / max(float(small.max()), 1e-6) - MEAN) / STD).transpose(2, 0, 1)[None]
    (found,) = _session[0].run(None, {"images": np.ascontiguousarray(batch)})
    found = found[0, 0]
    found = (found - found.min()) / max(float(np.ptp(found)), 1e-6)
    full = Image.fromarray((found * 255).astype(np.uint8)).resize(rgb.shape[1::-1], Image.Resampling.LANCZOS)
    mask = np.asarray(full) >= 128
    stem = Path(out) / Path(path).stem
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(f"{stem}_mask.png", compress_level=6)
    Image.fromarray(overlay(rgb, mask)).save(f"{stem}_overlay.png", compress_level=3)


def main(folder: str, out: str, n_threads: str) -> None:
    """Print both numbers."""
    print(*timed(folder, out, int(n_threads), _start, (), _segment))


if __name__ == "__main__":
    main(*sys.argv[1:])

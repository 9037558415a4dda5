"""Options and steps that several commands of :mod:`vitnp.weights.train.cli` have in common."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.cli import shared
from vitnp.cli.arguments import positive
from vitnp.errors import ImageError, UsageError

if TYPE_CHECKING:
    from vitnp.weights.train.data.packs import Picture

    from vitnp.evaluate.data.pairs import Pair


def add_photograph_options(parser: argparse.ArgumentParser) -> None:
    """Add the photographs to read, and those to leave out."""
    parser.add_argument("photographs", nargs="+", type=Path, metavar="PHOTOS", help="folders, files and packs (.npz)")
    parser.add_argument(
        "--exclude", action="append", default=[], type=Path, metavar="DIR",
        help="leave out photographs that also occur in DIR, by file name or by looks; may be repeated",
    )  # fmt: skip


def add_run_options(parser: argparse.ArgumentParser, log_steps: int) -> argparse._ArgumentGroup:
    """Add the options of how a run trains, which do not change what it learns; return their group."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", metavar="NAME", help="cpu or cuda (cpu)")
    add("--float32", action="store_true", help="matrix products in float32 instead of bfloat16")
    add("--threads", type=positive, metavar="N", help="threads of torch (chosen by torch)")
    add("--save-minutes", type=above_zero, default=5.0, metavar="M", help="minutes between saves (5)")
    add(
        "--log-steps", type=positive, default=log_steps, metavar="N",
        help=f"steps between log entries ({log_steps})",
    )  # fmt: skip
    add("--quiet", action="store_true", help="print errors only")
    return group


def add_result_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the options of where the result goes, and what its file says."""
    add = parser.add_argument_group("result").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    add("--name", default=name, metavar="TEXT", help=f"name to write into the file ({name})")
    add("--license", default="unspecified", metavar="TEXT", help="license to write into the file (unspecified)")
    add("--score", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="evaluate the masks at the end")


def add_length_options(group: argparse._ArgumentGroup, per: str) -> None:
    """Add the length of a training, of which exactly one must be given; `per` says of what it is the length."""
    length = group.add_mutually_exclusive_group(required=True)
    length.add_argument(
        "--minutes", type=above_zero, metavar="M", help=f"training time{per}; schedules follow the clock"
    )
    length.add_argument("--steps", type=positive, metavar="N", help=f"training steps{per}; reproducible on a CPU")


def require_torch(threads: int | None) -> None:
    """Prepare torch for training; raise a UsageError if it is not installed."""
    try:
        import torch
    except ImportError:
        raise UsageError("training needs torch; install it with `pip install '.[train]'` in a checkout") from None
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")


def above_zero(text: str) -> float:
    """Parse a finite number above 0; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def training_pictures(args: argparse.Namespace) -> list[Picture]:
    """Return the photographs to train on, without those excluded."""
    from vitnp.weights.train.data.dedup import Deduplication
    from vitnp.weights.train.data.packs import list_pictures

    pictures = list_pictures(args.photographs)
    if not args.exclude:
        return pictures
    outcomes = Deduplication(args.exclude).check(pictures, short_side=64)
    progress = shared.progress(outcomes, len(pictures), quiet=args.quiet)
    kept = [picture for picture, outcome in progress if not isinstance(outcome, (str, ImageError))]
    shared.say(f"{len(pictures) - len(kept)} of {len(pictures)} photographs left out", quiet=args.quiet)
    return kept


def match_pairs(args: argparse.Namespace) -> list[Pair]:
    """Return the photographs and masks of --score; called first so that an error is reported before the training."""
    if not args.score:
        return []
    from vitnp.evaluate.data import pairs as data

    pairs, _ = data.match_pairs(*args.score)
    return pairs


def score(network: Path, pairs: list[Pair], args: argparse.Namespace) -> None:
    """Evaluate a network on photographs with masks; log and print the scores."""
    from vitnp.weights.train.log import RunLog

    from vitnp.checkpoints.load import load_vit
    from vitnp.evaluate.saliency import score_photographs

    scored = score_photographs(pairs, load_vit(network), n_threads=args.threads)
    RunLog(args.out / "log.jsonl").write({"images": scored.images, **scored.scores})
    print(f"foreground IoU of {scored.images} photographs: {scored.scores['iou']:.4f}")


def previous_crops(init: str | None) -> int:
    """Return the number of crops that an initial student was trained on, from the metadata of its file."""
    if init is None:
        return 0
    from vitnp.checkpoints.load import describe

    crops = str(describe(init).get("metadata crops", "0"))
    return int(crops) if crops.isdecimal() else 0


@contextlib.contextmanager
def log_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Print log messages to stderr; with `quiet`, errors only."""
    logger = logging.getLogger("vitnp")
    level, handler = logger.level, logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("vitnp: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)

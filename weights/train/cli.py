"""``python -m vitnp.weights.train``: make packs of photographs, and distill a checkpoint like the built-in one."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitnp.cli import shared
from vitnp.cli.arguments import natural, positive
from vitnp.errors import ImageError, OutputError, UsageError

if TYPE_CHECKING:
    from vitnp.weights.train.data.packs import Picture
    from vitnp.weights.train.recipe import Recipe

    from vitnp.evaluate.data.pairs import Pair

PROG = "python -m vitnp.weights.train"

# Optimizers of :class:`vitnp.weights.train.student.Student`, listed here so that --help needs no torch.
OPTIMIZERS = ("muon", "adamw")


def main(argv: list[str] | None = None) -> int:
    """Run the command, and return its exit status.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default those of the process.
    """
    args = build_parser().parse_args(argv)
    return args.command(args)


# --- options ---------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command and its subcommands."""
    parser = shared.parser(
        PROG,
        "Make a checkpoint: pack photographs, and distill a trained network into a smaller one. Needs no labels.",
        epilog=f"See `{PROG} COMMAND --help`. distill needs torch: `pip install '.[train]'` in a checkout.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(parser))
    pack_parser = commands.add_parser(
        "pack", help="write many photographs to one file", description="Make a pack: small photographs in one file."
    )
    _add_pack_options(pack_parser)
    pack_parser.set_defaults(command=_pack)
    distill_parser = commands.add_parser(
        "distill",
        help="train a smaller network to reproduce a trained one",
        description="Distill a trained network into one of fewer blocks. Run the same command again to resume an "
        "interrupted run.",
        epilog="DIR will contain student.safetensors, log.jsonl and, until the end, state.pt. "
        "Exit status: 0 finished, 2 wrong usage, 130 interrupted.",
    )
    _add_distill_options(distill_parser)
    distill_parser.set_defaults(command=_distill)
    return parser


def _add_photograph_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photographs", nargs="+", type=Path, metavar="PHOTOS", help="folders, files and packs (.npz)")
    parser.add_argument(
        "--exclude", action="append", default=[], type=Path, metavar="DIR",
        help="leave out photographs that also occur in DIR, by file name or by looks; may be repeated",
    )  # fmt: skip


def _add_pack_options(parser: argparse.ArgumentParser) -> None:
    _add_photograph_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".npz file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def _add_distill_options(parser: argparse.ArgumentParser) -> None:
    _add_photograph_options(parser)
    add = parser.add_argument_group("networks").add_argument
    add("--teacher", required=True, metavar="NAME|FILE", help="any checkpoint that --model accepts elsewhere")
    add("--init", metavar="FILE", help="student of an earlier run to start from (random weights)")
    add("--depth", type=positive, default=6, metavar="N", help="number of blocks of the student (6)")

    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=_above_zero, metavar="M", help="training time; schedules follow the clock")
    length.add_argument("--steps", type=positive, metavar="N", help="training steps; reproducible on a CPU")
    add = group.add_argument
    add("--batch", type=positive, default=16, metavar="N", help="crops of 224 x 224 per batch (16; on a GPU 512)")
    add("--pool", type=natural, default=0, metavar="N", help="batches kept and used 3 times, 0.9 MB per crop (0)")
    add("--optimizer", choices=OPTIMIZERS, default="muon", metavar="NAME", help="muon or adamw (muon)")
    add("--optimiser", dest="optimizer", choices=OPTIMIZERS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--rate", type=_above_zero, default=1e-3, metavar="R", help="learning rate of AdamW (1e-3)")
    add("--muon-rate", type=_above_zero, default=0.012, metavar="R", help="learning rate of Muon (0.012)")
    add("--held-out", type=natural, default=64, metavar="N", help="photographs kept for evaluation (64)")
    add("--seed", type=natural, default=0, metavar="N", help="random seed (0)")

    add = parser.add_argument_group("run").add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", metavar="NAME", help="cpu or cuda (cpu)")
    add("--float32", action="store_true", help="matrix products in float32 instead of bfloat16")
    add("--compile", action="store_true", help="compile the networks first; faster on a GPU")
    add("--threads", type=positive, metavar="N", help="threads of torch (chosen by torch)")
    add("--save-minutes", type=_above_zero, default=5.0, metavar="M", help="minutes between saves (5)")
    add("--log-steps", type=positive, default=100, metavar="N", help="steps between log entries (100)")
    add("--quiet", action="store_true", help="print errors only")

    add = parser.add_argument_group("result").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    add("--name", default="student", metavar="TEXT", help="name to write into the file (student)")
    add("--license", default="unspecified", metavar="TEXT", help="license to write into the file (unspecified)")
    add("--score", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="evaluate the student's masks at the end")


def _above_zero(text: str) -> float:
    """Parse a finite number above 0; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


# --- pack ------------------------------------------------------------------------------------------------------------


def _pack(args: argparse.Namespace) -> int:
    from vitnp.weights.train.data.dedup import Deduplication
    from vitnp.weights.train.data.packs import list_pictures, write_pack

    if args.out.suffix != ".npz":
        raise UsageError(f"--out must end in .npz, got {args.out}")
    if args.out.exists() and not args.overwrite:
        raise OutputError(f"{args.out} exists already; choose another name, or give --overwrite")
    pictures = list_pictures(args.photographs)
    failures: list[Exception] = []
    n_excluded = 0

    def photographs() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal n_excluded
        outcomes = Deduplication(args.exclude).check(pictures)
        for picture, outcome in shared.progress(outcomes, len(pictures), quiet=False):
            if isinstance(outcome, ImageError):
                failures.append(outcome)
            elif isinstance(outcome, str):
                n_excluded += 1
            else:
                yield picture.name, outcome

    n_packed = write_pack(args.out, photographs())
    print(args.out)
    shared.say(f"{n_packed} photographs" + (f", {n_excluded} left out" if args.exclude else ""))
    if failures:
        shared.list_failures(failures, len(pictures))
    return shared.EXIT_SOME_FAILED if failures else shared.EXIT_OK


# --- distill ---------------------------------------------------------------------------------------------------------


def _distill(args: argparse.Namespace) -> int:
    try:
        import torch
    except ImportError:
        raise UsageError("training needs torch; install it with `pip install '.[train]'` in a checkout") from None
    from vitnp.kernels.threads import pool
    from vitnp.weights.train.distill import distill
    from vitnp.weights.train.recipe import RunEnvironment, StudentInfo
    from vitnp.weights.train.signals import stop_on_signal

    from vitnp.checkpoints.load import load_vit

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    pairs = _match_pairs(args)
    teacher = load_vit(args.teacher)
    init = load_vit(args.init) if args.init else None
    pictures = _training_pictures(args)
    with _log_to_stderr(quiet=args.quiet), stop_on_signal() as should_stop:
        environment = RunEnvironment(
            args.device, args.compile, pool.resolve_n_threads(), args.save_minutes, args.log_steps, should_stop
        )
        info = StudentInfo(args.name, args.license, _previous_crops(args.init))
        student = distill(teacher, pictures, args.out, _recipe(args), init=init, info=info, environment=environment)
    if student is None:
        shared.say(f"saved in {args.out}; run the same command again to resume", quiet=args.quiet)
        return shared.EXIT_INTERRUPTED
    print(student)
    if pairs:
        _score(student, pairs, args)
    return shared.EXIT_OK


def _recipe(args: argparse.Namespace) -> Recipe:
    from vitnp.weights.train.recipe import Recipe

    return Recipe(
        minutes=args.minutes,
        steps=args.steps,
        depth=args.depth,
        batch_size=args.batch,
        pool_size=args.pool,
        optimizer=args.optimizer,
        lr=args.rate,
        muon_lr=args.muon_rate,
        n_held_out=args.held_out,
        seed=args.seed,
        bfloat16=not args.float32,
    )


def _training_pictures(args: argparse.Namespace) -> list[Picture]:
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


def _match_pairs(args: argparse.Namespace) -> list[Pair]:
    """Return the photographs and masks of --score; called first so that an error is reported before the training."""
    if not args.score:
        return []
    from vitnp.evaluate.data.pairs import match_pairs

    pairs, _ = match_pairs(*args.score)
    return pairs


def _score(student: Path, pairs: list[Pair], args: argparse.Namespace) -> None:
    """Evaluate a student on photographs with masks; log and print the scores."""
    from vitnp.weights.train.log import RunLog

    from vitnp.checkpoints.load import load_vit
    from vitnp.evaluate.saliency import score_photographs

    scored = score_photographs(pairs, load_vit(student), n_threads=args.threads)
    RunLog(args.out / "log.jsonl").write({"images": scored.images, **scored.scores})
    print(f"foreground IoU of {scored.images} photographs: {scored.scores['iou']:.4f}")


def _previous_crops(init: str | None) -> int:
    """Return the number of crops that an initial student was trained on, from the metadata of its file."""
    if init is None:
        return 0
    from vitnp.checkpoints.load import describe

    crops = str(describe(init).get("metadata crops", "0"))
    return int(crops) if crops.isdecimal() else 0


@contextlib.contextmanager
def _log_to_stderr(*, quiet: bool) -> Iterator[None]:
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

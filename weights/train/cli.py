"""``python -m vitnp.weights.train``: make packs of photographs, and train checkpoints like the built-in one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from vitnp.weights.train import cli_selftrain
from vitnp.weights.train.cli_shared import (
    above_zero,
    add_length_options,
    add_photograph_options,
    add_result_options,
    add_run_options,
    log_to_stderr,
    match_pairs,
    previous_crops,
    require_torch,
    score,
    training_pictures,
)

from vitnp.cli import shared
from vitnp.cli.arguments import natural, positive
from vitnp.errors import ImageError, OutputError, UsageError

if TYPE_CHECKING:
    from vitnp.weights.train.recipe import Recipe

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
        "Make a checkpoint: pack photographs, train a network on its own masks of them, or distill a trained network "
        "into a smaller one. Needs no labels.",
        epilog=f"See `{PROG} COMMAND --help`. selftrain and distill need torch: "
        "`pip install '.[train]'` in a checkout.",
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
    cli_selftrain.add_command(commands)
    return parser


def _add_pack_options(parser: argparse.ArgumentParser) -> None:
    add_photograph_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".npz file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def _add_distill_options(parser: argparse.ArgumentParser) -> None:
    add_photograph_options(parser)
    add = parser.add_argument_group("networks").add_argument
    add("--teacher", required=True, metavar="NAME|FILE", help="any checkpoint that --model accepts elsewhere")
    add("--init", metavar="FILE", help="student of an earlier run to start from (random weights)")
    add("--depth", type=positive, default=6, metavar="N", help="number of blocks of the student (6)")

    group = parser.add_argument_group("training")
    add_length_options(group, "")
    add = group.add_argument
    add("--batch", type=positive, default=16, metavar="N", help="crops of 224 x 224 per batch (16; on a GPU 512)")
    add("--pool", type=natural, default=0, metavar="N", help="batches kept and used 3 times, 0.9 MB per crop (0)")
    add("--optimizer", choices=OPTIMIZERS, default="muon", metavar="NAME", help="muon or adamw (muon)")
    add("--optimiser", dest="optimizer", choices=OPTIMIZERS, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--rate", type=above_zero, default=1e-3, metavar="R", help="learning rate of AdamW (1e-3)")
    add("--muon-rate", type=above_zero, default=0.012, metavar="R", help="learning rate of Muon (0.012)")
    add("--held-out", type=natural, default=64, metavar="N", help="photographs kept for evaluation (64)")
    add("--seed", type=natural, default=0, metavar="N", help="random seed (0)")

    run = add_run_options(parser, log_steps=100)
    run.add_argument("--compile", action="store_true", help="compile the networks first; faster on a GPU")
    add_result_options(parser, "student")


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
    require_torch(args.threads)
    from vitnp.kernels.threads import pool
    from vitnp.weights.train.distill import distill
    from vitnp.weights.train.recipe import RunEnvironment, StudentInfo
    from vitnp.weights.train.signals import stop_on_signal

    from vitnp.checkpoints.load import load_vit

    pairs = match_pairs(args)
    teacher = load_vit(args.teacher)
    init = load_vit(args.init) if args.init else None
    pictures = training_pictures(args)
    with log_to_stderr(quiet=args.quiet), stop_on_signal() as should_stop:
        environment = RunEnvironment(
            args.device, args.compile, pool.resolve_n_threads(), args.save_minutes, args.log_steps, should_stop
        )
        info = StudentInfo(args.name, args.license, previous_crops(args.init))
        student = distill(teacher, pictures, args.out, _recipe(args), init=init, info=info, environment=environment)
    if student is None:
        shared.say(f"saved in {args.out}; run the same command again to resume", quiet=args.quiet)
        return shared.EXIT_INTERRUPTED
    print(student)
    if pairs:
        score(student, pairs, args)
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

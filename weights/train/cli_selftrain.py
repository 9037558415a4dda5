"""``python -m vitnp.weights.train selftrain``: options and command."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

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
from vitnp.weights.train.selftrain_recipe import SelftrainEnvironment, SelftrainRecipe

from vitnp.cli import shared
from vitnp.cli.arguments import natural, positive

if TYPE_CHECKING:
    from vitnp.weights.train.tune import TunedInfo

_DEFAULTS = SelftrainRecipe()


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of :mod:`vitnp.weights.train.cli`."""
    parser = commands.add_parser(
        "selftrain",
        help="train a network on its own masks of photographs",
        description="Train a network on the masks that its own features give of photographs, in rounds: fit a "
        "collection, segment the photographs with it, train. Run the same command again to resume an interrupted run.",
        epilog="DIR will contain selftrained.safetensors and, for each round, the collection, the labels and the log. "
        "Exit status: 0 finished, 2 wrong usage, 130 interrupted.",
    )
    add_photograph_options(parser)
    add = parser.add_argument_group("networks").add_argument
    add(
        "--checkpoint", required=True, metavar="NAME|FILE",
        help="the original network, near which features are kept; any that --model accepts elsewhere",
    )  # fmt: skip
    add("--init", metavar="FILE", help="network of an earlier run to start from (the original one)")
    _add_label_options(parser)
    _add_training_options(parser)
    add_run_options(parser, log_steps=SelftrainEnvironment.log_steps)
    add_result_options(parser, "selftrained")
    parser.set_defaults(command=_selftrain)


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument_group("labels").add_argument, _DEFAULTS
    add("--rounds", type=positive, default=default.rounds, metavar="N", help=f"rounds ({default.rounds})")
    add(
        "--fit", dest="n_fit", type=positive, default=default.n_fit, metavar="N",
        help=f"photographs to fit a collection on ({default.n_fit})",
    )  # fmt: skip
    add("--labels", dest="n_labels", type=positive, metavar="N", help="photographs to label in each round (all)")
    add(
        "--min-confidence", type=_share, default=default.min_confidence, metavar="C",
        help=f"least confidence of a mask to learn from, 0 to 1 ({default.min_confidence})",
    )  # fmt: skip


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group, default = parser.add_argument_group("training"), _DEFAULTS
    add_length_options(group, " of each round")
    add = group.add_argument
    add(
        "--batch", type=positive, default=default.batch_size, metavar="N",
        help=f"crops of 224 x 224 per batch ({default.batch_size})",
    )  # fmt: skip
    add("--rate", type=above_zero, default=default.lr, metavar="R", help=f"learning rate of AdamW ({default.lr:g})")
    add(
        "--key-weight", type=_not_negative, default=default.key_weight, metavar="W",
        help=f"how strongly keys are kept ({default.key_weight})",
    )  # fmt: skip
    add(
        "--cls-weight", type=_not_negative, default=default.cls_weight, metavar="W",
        help=f"how strongly CLS tokens, by which classes are found, are kept ({default.cls_weight})",
    )  # fmt: skip
    add("--seed", type=natural, default=default.seed, metavar="N", help=f"random seed ({default.seed})")


def _not_negative(text: str) -> float:
    """Parse a finite number that is not negative; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


def _share(text: str) -> float:
    """Parse a number from 0 to 1; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text}")
    return value


def _selftrain(args: argparse.Namespace) -> int:
    require_torch(args.threads)
    from vitnp.kernels.threads import pool
    from vitnp.weights.train.selftrain import selftrain
    from vitnp.weights.train.signals import stop_on_signal

    from vitnp.checkpoints.load import load_vit

    pairs = match_pairs(args)
    vit = load_vit(args.checkpoint)
    start = load_vit(args.init) if args.init else None
    pictures = training_pictures(args)
    with log_to_stderr(quiet=args.quiet), stop_on_signal() as should_stop:
        environment = SelftrainEnvironment(
            args.device, pool.resolve_n_threads(), args.save_minutes, args.log_steps, should_stop
        )
        network = selftrain(
            vit,
            pictures,
            args.out,
            _recipe(args),
            _info(args),
            start=start,
            environment=environment,
            progress=functools.partial(shared.stage_progress, quiet=args.quiet),
        )
    if network is None:
        shared.say(f"saved in {args.out}; run the same command again to resume", quiet=args.quiet)
        return shared.EXIT_INTERRUPTED
    print(network)
    if pairs:
        score(network, pairs, args)
    return shared.EXIT_OK


def _recipe(args: argparse.Namespace) -> SelftrainRecipe:
    return SelftrainRecipe(
        rounds=args.rounds,
        minutes=args.minutes,
        steps=args.steps,
        n_fit=args.n_fit,
        n_labels=args.n_labels,
        min_confidence=args.min_confidence,
        batch_size=args.batch,
        lr=args.rate,
        key_weight=args.key_weight,
        cls_weight=args.cls_weight,
        seed=args.seed,
        bfloat16=not args.float32,
    )


def _info(args: argparse.Namespace) -> TunedInfo:
    from vitnp.weights.train.tune import TunedInfo

    return TunedInfo(args.name, args.license, previous_crops=previous_crops(args.init))

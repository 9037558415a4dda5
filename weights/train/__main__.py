"""``python -m vitnp.weights.train``: packs of photographs, and distillation of a checkpoint like the built-in one."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from vitnp.cli import shared
from vitnp.cli.arguments import natural, positive
from vitnp.errors import ImageError, OutputError, UsageError

PROG = "python -m vitnp.weights.train"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    args = build_parser().parse_args(arguments)
    return args.act(args)


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = shared.parser(
        PROG,
        "Make a checkpoint: gather photographs, and distil a trained network into a smaller one. Needs no labels.",
        epilog=f"`{PROG} COMMAND --help` tells more. distill needs torch: `pip install '.[train]'` in a checkout.",
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=type(made))

    add = commands.add_parser(
        "pack", help="many photographs as one file", description="Make a pack: small photographs in one file."
    )
    _add_photographs(add)
    add.add_argument("--out", type=Path, required=True, metavar="FILE", help=".npz file to write")
    add.add_argument("--overwrite", action="store_true", help="replace FILE when it exists")
    add.set_defaults(act=_pack)

    add = commands.add_parser(
        "distill",
        help="a smaller network from a trained one",
        description="Distil a trained network into one of fewer blocks. The same command goes on when interrupted.",
        epilog="DIR gets student.safetensors, log.jsonl and, until the end, state.pt. "
        "exit status: 0 done, 2 wrong usage, 130 interrupted",
    )
    _add_photographs(add)
    group = add.add_argument_group("networks")
    group.add_argument(
        "--teacher", required=True, metavar="NAME|FILE", help="any checkpoint that --model takes elsewhere"
    )
    group.add_argument("--init", metavar="FILE", help="a student of an earlier run to go on from")
    group.add_argument("--depth", type=positive, default=6, metavar="N", help="blocks of the student (6)")
    group = add.add_argument_group("training")
    length = group.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=_above_zero, metavar="M", help="how long; the schedule ends with them")
    length.add_argument("--steps", type=positive, metavar="N", help="how long instead; repeatable on a CPU")
    group.add_argument(
        "--batch", type=positive, default=16, metavar="N", help="crops of 224 x 224 (16; a GPU takes 512)"
    )
    group.add_argument(
        "--pool", type=natural, default=0, metavar="N", help="batches kept and used three times, 0.9 MB a crop (0)"
    )
    group.add_argument(
        "--optimizer", choices=("muon", "adamw"), default="muon", metavar="NAME", help="muon or adamw (muon)"
    )
    group.add_argument("--rate", type=_above_zero, default=1e-3, metavar="R", help="learning rate of AdamW (1e-3)")
    group.add_argument(
        "--muon-rate", type=_above_zero, default=0.012, metavar="R", help="learning rate of Muon (0.012)"
    )
    group.add_argument(
        "--held-out", type=natural, default=64, metavar="N", help="photographs kept out, to measure on (64)"
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N")
    group = add.add_argument_group("run")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cpu", metavar="NAME", help="cpu or cuda (cpu)")
    group.add_argument("--float32", action="store_true", help="products in float32; otherwise bfloat16")
    group.add_argument("--compile", action="store_true", help="compile the networks first; faster on a GPU")
    group.add_argument("--threads", type=positive, metavar="N", help="of torch (its own choice)")
    group.add_argument("--save-minutes", type=_above_zero, default=5.0, metavar="M", help="between saves (5)")
    group.add_argument("--log-steps", type=positive, default=100, metavar="N", help="between lines of the log (100)")
    group.add_argument("--quiet", action="store_true", help="errors only")
    group = add.add_argument_group("result")
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    group.add_argument("--name", default="student", help="written into the file (student)")
    group.add_argument("--license", default="unspecified", metavar="TEXT", help="written into the file (unspecified)")
    group.add_argument(
        "--score", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="evaluate masks made with it at the end"
    )
    add.set_defaults(act=_distill)
    return made


def _add_photographs(to: argparse.ArgumentParser) -> None:
    to.add_argument("photographs", nargs="+", type=Path, metavar="PHOTOS", help="folders, files and packs (.npz)")
    to.add_argument(
        "--exclude", action="append", default=[], type=Path, metavar="DIR",
        help="leave out what also occurs there, by file name or by looks; may be given again",
    )  # fmt: skip


def _pack(args: argparse.Namespace) -> int:
    from vitnp.weights.train.data.dedup import Deduplication
    from vitnp.weights.train.data.packs import pictures_of, write_pack

    if args.out.suffix != ".npz":
        raise UsageError(f"{args.out} should end in .npz")
    if args.out.exists() and not args.overwrite:
        raise OutputError(f"{args.out} exists already: choose another name, or give --overwrite")
    pictures = pictures_of(args.photographs)
    excluded, failures = [], []

    def readable() -> Iterator[tuple[str, object]]:
        found = Deduplication(args.exclude).sort_out(pictures)
        for picture, outcome in shared.progress(found, len(pictures), quiet=False):
            if isinstance(outcome, ImageError):
                failures.append(outcome)
            elif isinstance(outcome, str):
                excluded.append(picture)
            else:
                yield picture.name, outcome

    count = write_pack(args.out, readable())
    print(args.out)
    shared.say(f"{count} photographs" + (f", {len(excluded)} left out" if args.exclude else ""))
    if failures:
        shared.list_failures(failures, len(pictures))
    return shared.EXIT_SOME_FAILED if failures else shared.EXIT_OK


def _distill(args: argparse.Namespace) -> int:
    try:
        import torch
    except ImportError:
        raise UsageError("training needs torch: `pip install '.[train]'` in a checkout brings it") from None
    from vitnp.kernels.threads import pool
    from vitnp.weights.train.data.dedup import Deduplication
    from vitnp.weights.train.data.packs import pictures_of
    from vitnp.weights.train.distill import Origin, Recipe, Surroundings, distill

    from vitnp.checkpoints.load import load_vit

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")
    pairs = _pairs(args) if args.score else None
    teacher = load_vit(args.teacher)
    init = load_vit(args.init) if args.init else None
    pictures = pictures_of(args.photographs)
    if args.exclude:
        found = Deduplication(args.exclude).sort_out(pictures, short_side=64)
        found = shared.progress(found, len(pictures), quiet=args.quiet)
        before, pictures = (
            len(pictures),
            [picture for picture, outcome in found if not isinstance(outcome, (str, ImageError))],
        )
        shared.say(f"{before - len(pictures)} of {before} photographs left out", quiet=args.quiet)
    recipe = Recipe(
        minutes=args.minutes, steps=args.steps, depth=args.depth, batch=args.batch, kept=args.pool,
        optimizer=args.optimizer, rate=args.rate, muon_rate=args.muon_rate, held_out=args.held_out, seed=args.seed,
        bfloat16=not args.float32,
    )  # fmt: skip
    with _interruption() as stop:
        student = distill(
            teacher, pictures, args.out, recipe, init=init,
            origin=Origin(args.name, args.license, _crops_seen(args.init)),
            around=Surroundings(
                args.device, args.compile, pool.resolve_n_threads(), args.save_minutes, args.log_steps,
                notice=lambda message: shared.say(message, quiet=args.quiet), stop=stop,
            ),
        )  # fmt: skip
    if student is None:
        shared.say(f"saved in {args.out}: the same command goes on from there", quiet=args.quiet)
        return shared.EXIT_INTERRUPTED
    print(student)
    if pairs:
        _score(student, pairs, args)
    return shared.EXIT_OK


def _pairs(args: argparse.Namespace) -> list:
    """Photographs and masks to score, looked for before the long work."""
    from vitnp.evaluate.data.pairs import match_pairs

    pairs, _ = match_pairs(*args.score)
    return pairs


def _score(student: Path, pairs: list, args: argparse.Namespace) -> None:
    from vitnp.weights.train.log import RunLog

    from vitnp.checkpoints.load import load_vit
    from vitnp.evaluate.saliency import score_photographs

    scored = score_photographs(pairs, load_vit(student), n_threads=args.threads)
    RunLog(args.out / "log.jsonl").write({"images": scored.images, **scored.scores})
    print(f"foreground IoU of {scored.images} photographs: {scored.scores['iou']:.4f}")


def _crops_seen(init: str | None) -> int:
    """Crops that a student had seen in earlier runs, as its file says."""
    if init is None:
        return 0
    from vitnp.checkpoints.load import describe

    crops = describe(init).get("metadata crops", "0")
    return int(crops) if crops.isdecimal() else 0


@contextlib.contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells of Ctrl-C or a polite kill: they wait for the end of a step, a second one doesn't."""
    asked = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _above_zero(text: str) -> float:
    """Argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} isn't a number above 0")
    return value


if __name__ == "__main__":
    shared.run(main)

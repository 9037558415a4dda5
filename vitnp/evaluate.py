"""``python -m vitnp.evaluate``: scores of vitnp's masks against true ones."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from vitnp import cli
from vitnp.errors import ImageError, UsageError

SALIENCY_ROWS = (
    ("foreground IoU", "iou"),
    ("accuracy", "accuracy"),
    ("max F-beta", "max_f"),
    ("MAE (0 is best)", "mae"),
    ("S-measure", "s_measure"),
)


def saliency(args: argparse.Namespace) -> int:
    """Score foreground masks; the exit status."""
    from vitnp.datasets import match_pairs
    from vitnp.saliency import mean_scores, score_pairs

    pairs, unused = match_pairs(args.images, args.masks)
    if unused:
        cli.say(f"masks without a photograph don't count: {len(unused)}, such as {unused[0]}", quiet=args.quiet)
    vit = cli.load_model(args)
    scores, failures = [], []
    with contextlib.closing(score_pairs(pairs, vit, threads=args.threads, **cli.method_options(args))) as outcomes:
        for outcome in cli.progress(outcomes, len(pairs), quiet=args.quiet):
            (failures if isinstance(outcome, ImageError) else scores).append(outcome)
    if failures:
        cli.list_failures(failures, len(pairs))
    if not scores:
        raise UsageError(f"none of the {len(pairs)} photographs could be scored; see the reasons above")
    mean = mean_scores(scores)
    if args.json:
        cli.print_json({"images": len(scores), **mean._asdict()})
    else:
        print(f"{'photographs':<16} {len(scores):>6}")
        for title, key in SALIENCY_ROWS:
            print(f"{title:<16} {getattr(mean, key):>6.4f}")
    return cli.EXIT_SOME_FAILED if failures else cli.EXIT_OK


TASKS = {"saliency": saliency}


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = cli.parser(
        "python -m vitnp.evaluate",
        "Segment the photographs of a folder and score the results against true masks: means over the photographs.",
        usage="python -m vitnp.evaluate --task saliency [options] IMAGES MASKS",
        epilog="A mask has its photograph's path within the folder, or its file name where that is unique; white is the object. "
        "Exit status: 0 all done, 3 some photographs failed, 2 wrong usage or nothing done, 130 interrupted.",
    )
    made.add_argument("images", type=Path, metavar="IMAGES", help="folder of photographs")
    made.add_argument("masks", type=Path, metavar="MASKS", help="folder of their masks")
    made.add_argument("--task", choices=tuple(TASKS), default="saliency", help="what is scored (saliency)")
    cli.add_model_options(made)
    cli.add_method_options(made)
    cli.add_run_options(made)
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    args = build_parser().parse_args(argv)
    return TASKS[args.task](args)


if __name__ == "__main__":
    cli.run(main)

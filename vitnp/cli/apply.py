"""``vitnp apply decisions.json OUT``: write a finished run anew, as a person has decided on its gallery."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from vitnp.cli import arguments, shared
from vitnp.errors import UsageError, VitnpError

if TYPE_CHECKING:
    from vitnp.export.apply import Applied


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = shared.parser(
        "vitnp apply",
        "Write labels, annotations and exports of a finished run anew, as decided on its\n"
        "gallery.html. What the run found is kept: --undo restores it.",
        usage="vitnp apply [options] decisions.json OUT",
        examples=(
            "vitnp apply Downloads/decisions.json OUT/",
            "vitnp apply decisions.json OUT/ --refit BETTER/",
            "vitnp apply --undo OUT/",
        ),
        epilog=shared.EXIT_STATUSES,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=argparse.SUPPRESS)
    group = parser.add_argument_group("output")
    group.add_argument("--undo", action="store_true", help="write everything as before any decisions")
    group.add_argument(
        "--refit",
        type=Path,
        metavar="DIR",
        help="also fit and segment again without rejected photographs",
    )
    arguments.add_options(
        parser,
        "run",
        "model",
        "n_threads",
        "quiet",
        "json",
        model={"help": "with --refit: checkpoint of the run (its own)"},
    )
    return parser


def _apply(args: argparse.Namespace) -> int:
    """Apply decisions, or undo them, and return the exit status."""
    shared.set_verbosity(quiet=args.quiet)
    if len(args.paths) != 2 - args.undo:
        raise UsageError(
            "give OUT alone with --undo" if args.undo else "give decisions.json and OUT, the folder of the run"
        )
    if args.undo and args.refit:
        raise UsageError("--refit leaves out what decisions reject; leave out --undo")
    from vitnp.export.apply import apply_decisions, undo_decisions

    out = args.paths[-1]
    _report(args, undo_decisions(out) if args.undo else apply_decisions(args.paths[0], out))
    return _refit(args, out) if args.refit else shared.EXIT_OK


def _report(args: argparse.Namespace, applied: Applied) -> None:
    """Say what the decisions came to."""
    if args.json:
        shared.print_json(
            {
                "status": "done",
                "classes": list(applied.names),
                "wrong": applied.wrong,
                "empty": applied.empty,
                "moved": applied.moved,
                "formats": list(applied.formats),
            }
        )
        return
    counts = (
        f"{len(applied.names)} class{'es' * (len(applied.names) != 1)}, {applied.wrong} wrong masks left out, "
        f"{applied.empty} without object, {applied.moved} of another class"
    )
    formats = f"; written anew: {', '.join(applied.formats)}" if applied.formats else ""
    shared.say("everything is as before any decisions" if args.undo else counts + formats, quiet=args.quiet)


def _refit(args: argparse.Namespace, out: Path) -> int:
    """Fit and segment again without the photographs that were rejected, and return the exit status."""
    from vitnp.export.refit import refit

    failures: list[VitnpError] = []
    model = None if args.model == "auto" else args.model
    progress = functools.partial(shared.stage_progress, quiet=args.quiet)
    run = refit(out, args.refit, model=model, n_threads=args.n_threads, progress=progress)
    done = shared.report_outcomes(
        (outcome for outcome in run.outcomes()), failures, lambda outcome: None, as_json=args.json
    )
    if run.finished:
        shared.say(f"look at {args.refit / 'gallery.html'}", quiet=args.quiet)
    return shared.conclude(failures, len(run.photographs), done)


main = shared.Command(build_parser, _apply)
console = main.console

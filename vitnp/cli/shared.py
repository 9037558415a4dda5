"""What the command-line faces share: exit statuses, option groups, one way to report an error."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vitnp import __version__
from vitnp.errors import VitnpError

if TYPE_CHECKING:
    pass

EXIT_OK = 0
EXIT_USAGE = 2  # wrong usage, or nothing could be done
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Run a face and leave with its exit status; errors meant for the user become one line on stderr.

    Parameters
    ----------
    main : callable
        Takes the arguments (None for the process's own) and returns an exit status.
    """
    _log_to_stderr()
    try:
        status = main(None)
        sys.stdout.flush()
    except VitnpError as error:
        say_error(error)
        status = EXIT_USAGE
    except KeyboardInterrupt:
        print("vitnp: interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing to report, yet not all is done. Python would complain once more
        # at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_SOME_FAILED
    sys.exit(status)


def _log_to_stderr() -> None:
    """Show the library's log messages on stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("vitnp: %(message)s"))
    logger = logging.getLogger("vitnp")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def say_error(error: Exception | str) -> None:
    """One line on stderr."""
    print(f"vitnp: error: {error}", file=sys.stderr)


def say(message: str, *, quiet: bool = False) -> None:
    """A notice on stderr, so that stdout stays clean for results."""
    if not quiet:
        print(f"vitnp: {message}", file=sys.stderr)


def print_json(value: dict) -> None:
    """One JSON object on one line of stdout, at once, so that a reader of the pipe sees it when it's true."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


class _Parser(argparse.ArgumentParser):
    """argparse with errors in vitnp's own form: one sentence that ends in what to do."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"vitnp: error: {message} (see {self.prog} --help)\n")


def parser(
    prog: str, description: str, *, usage: str | None = None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """An argument parser in the house's style, with --version.

    Parameters
    ----------
    prog : str
        As the user types it, such as ``python -m vitnp.segment``.
    description, usage, epilog : str
    """

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog, max_help_position=23, width=min(shutil.get_terminal_size().columns, 100))

    made = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=formatter,
        add_help=False,
    )
    # Both are where everybody looks for them; their lines are better spent.
    made.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"vitnp {__version__}", help=argparse.SUPPRESS)
    return made


@contextlib.contextmanager
def stage_progress(stage: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar for one stage, on stderr, when somebody is watching."""
    if quiet or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=stage, dynamic_ncols=True, leave=False) as bar:
        yield bar.update


def progress(items: Iterable, total: int, *, quiet: bool, unit: str = "photograph") -> Iterable:
    """`items` with a progress bar on stderr, when there is more than one and somebody is watching."""
    if quiet or total < 2 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}s", dynamic_ncols=True, leave=False)


def list_failures(failures: list[Exception], total: int) -> None:
    """What failed, at the end of a run, one line each."""
    say(f"{len(failures)} of {total} failed:")
    for error in failures:
        print(f"  {error}", file=sys.stderr)


def report_failure(error: VitnpError, *, as_json: bool, photograph: Path | None = None) -> None:
    """A failure's JSON line; people read the list at the end."""
    if as_json:
        line = {} if photograph is None else {"photograph": str(photograph)}
        print_json({**line, "status": "failed", "error": str(error)})


def conclude(failures: list[VitnpError], total: int, done: int) -> int:
    """Say what failed of `total` inputs, of which `done` succeeded; the exit status."""
    if failures and total > 1:
        list_failures(failures, total)
    elif failures:
        say_error(failures[0])
    return EXIT_OK if not failures else EXIT_SOME_FAILED if done else EXIT_USAGE

"""What the commands share: exit statuses, parsers, progress bars, and one way to report an error."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from vitnp import __version__
from vitnp.errors import VitnpError

EXIT_OK = 0
EXIT_USAGE = 2  # wrong usage, or nothing could be done
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

Item = TypeVar("Item")


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Run a command and leave with its exit status; errors meant for users become one line on stderr.

    Parameters
    ----------
    main : callable
        Takes the arguments (None for the process's own) and returns an exit status.
    """
    show_log()
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
        # The reader of our output is gone (`| head`): there is nothing to report, yet not all is done. Without a
        # stdout that can be flushed, Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_SOME_FAILED
    sys.exit(status)


class _LogHandler(logging.Handler):
    """Shows what the library logs as one line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"vitnp: {record.getMessage()}", file=sys.stderr, flush=True)


def show_log() -> None:
    """Show the library's log on stderr."""
    logger = logging.getLogger("vitnp")
    if not any(isinstance(handler, _LogHandler) for handler in logger.handlers):
        logger.addHandler(_LogHandler())
    logger.setLevel(logging.INFO)


def set_verbosity(*, quiet: bool) -> None:
    """Show errors only, or notices too."""
    logging.getLogger("vitnp").setLevel(logging.ERROR if quiet else logging.INFO)


def say_error(error: Exception | str) -> None:
    """Print an error, one line on stderr."""
    print(f"vitnp: error: {error}", file=sys.stderr)


def say(message: str, *, quiet: bool = False) -> None:
    """Print a notice on stderr, so that stdout holds results only."""
    if not quiet:
        print(f"vitnp: {message}", file=sys.stderr)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line of stdout at once, so that the reader of a pipe sees it without delay."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence in vitnp's form."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"vitnp: error: {message} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples, wraps everything else, and fits the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27, width=min(shutil.get_terminal_size().columns, 100))


def parser(
    prog: str,
    description: str,
    *,
    usage: str | None = None,
    examples: Sequence[str] = (),
    epilog: str = "",
) -> argparse.ArgumentParser:
    """Return an argument parser with --version, and examples at the end of its help.

    Parameters
    ----------
    prog : str
        As the user types it, such as ``vitnp segment``.
    description, usage : str
    examples : sequence of str
        Command lines.
    epilog : str
        Lines after the examples.
    """
    lines = ["examples:", *(f"  {example}" for example in examples)] if examples else []
    made = _Parser(
        prog=prog,
        usage=usage,
        description=description,
        epilog="\n".join([*lines, *([epilog] if epilog else [])]),
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        add_help=False,
    )
    # Every user knows these two; their lines in the help are better spent.
    made.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    made.add_argument("--version", action="version", version=f"vitnp {__version__}", help=argparse.SUPPRESS)
    return made


EXIT_STATUSES = "exit status: 0 all done, 3 some failed, 2 nothing done, 130 interrupted"


@contextlib.contextmanager
def stage_progress(stage: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Show a progress bar for one stage on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=stage, dynamic_ncols=True, leave=False) as bar:
        yield bar.update


def progress(items: Iterable[Item], total: int, *, quiet: bool, unit: str = "photograph") -> Iterable[Item]:
    """Return `items` with a progress bar on stderr, if there are several and stderr is a terminal."""
    if quiet or total < 2 or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}s", dynamic_ncols=True, leave=False)


def list_failures(failures: Sequence[Exception], total: int) -> None:
    """Print what failed at the end of a run, one line each."""
    say(f"{len(failures)} of {total} failed:")
    for error in failures:
        print(f"  {error}", file=sys.stderr)


def report_failure(error: VitnpError, *, as_json: bool, photograph: Path | None = None) -> None:
    """Print the JSON line of a failure; without JSON, failures are listed at the end."""
    if as_json:
        line = {} if photograph is None else {"photograph": str(photograph)}
        print_json({**line, "status": "failed", "error": str(error)})


def conclude(failures: Sequence[VitnpError], total: int, done: int) -> int:
    """Print what failed of `total` inputs, of which `done` succeeded, and return the exit status."""
    if failures and total > 1:
        list_failures(failures, total)
    elif failures:
        say_error(failures[0])
    return EXIT_OK if not failures else EXIT_SOME_FAILED if done else EXIT_USAGE

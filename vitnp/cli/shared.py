"""What the commands share: exit statuses, parsers, progress bars, and the reporting of outcomes and errors."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar, cast

from vitnp import __version__
from vitnp.cli import streams
from vitnp.errors import VitnpError
from vitnp.io.path_text import ascii_json, path_entries

EXIT_OK = 0
EXIT_USAGE = 2  # wrong usage, or nothing could be done
EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130

EXIT_STATUSES = "exit status: 0 all done, 3 some failed, 2 nothing done, 130 interrupted"

Item = TypeVar("Item")


def run(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Run a command and exit with its status; an error meant for users becomes one line on stderr.

    Parameters
    ----------
    main : callable
        Command: takes the arguments (None for the process's own) and returns an exit status.
    """
    streams.open_missing()
    show_log()
    try:
        status = main(None)
    except VitnpError as error:
        say_error(error)
        status = EXIT_USAGE
    except KeyboardInterrupt:
        streams.print_error("vitnp: interrupted")
        status = EXIT_INTERRUPTED
    except SystemExit as stop:  # from the parser, which gives a number
        status = cast(int, stop.code)
    sys.exit(EXIT_SOME_FAILED if status == EXIT_OK and streams.output_lost() else status)


class _LogHandler(logging.Handler):
    """Shows what the library logs as one line each on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        streams.print_error(f"vitnp: {record.getMessage()}")


_LOGGER, _LOG_HANDLER = logging.getLogger("vitnp"), _LogHandler()


def show_log() -> None:
    """Show the library's log on stderr."""
    _LOGGER.addHandler(_LOG_HANDLER)  # does nothing if it is there already
    _LOGGER.setLevel(logging.INFO)


def set_verbosity(*, quiet: bool) -> None:
    """Show only the errors of the library's log, or its notices too."""
    _LOG_HANDLER.setLevel(logging.ERROR if quiet else logging.INFO)


def say_error(error: Exception | str) -> None:
    """Print an error as one line on stderr."""
    streams.print_error(f"vitnp: error: {error}")


def say(message: str, *, quiet: bool = False) -> None:
    """Print a notice on stderr, so that stdout holds results only."""
    if not quiet:
        streams.print_error(f"vitnp: {message}")


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout, in ASCII."""
    streams.write(ascii_json(value) + "\n", sys.stdout)


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one sentence in vitnp's form, and whose help spends no lines on --help and --version."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _HelpFormatter, **keywords, "add_help": False})
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.add_argument("--version", action="version", version=f"vitnp {__version__}", help=argparse.SUPPRESS)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; an option whose value may be left out takes only a number, never the photograph after it."""
        args = list(sys.argv[1:] if args is None else args)
        optional = {
            flag: action.const for action in self._actions if action.nargs == "?" for flag in action.option_strings
        }
        for index, text in enumerate(args):
            if text in optional and not (index + 1 < len(args) and _is_number(args[index + 1])):
                args[index] = f"{text}={optional[text]}"
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print an error such as "--layer must be a whole number, got 'x'", and exit."""
        message = message.removeprefix("argument ").replace(": must be ", " must be ", 1)
        say_error(f"{message} (see {self.prog} --help)")
        self.exit(EXIT_USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or version, whatever the stream's encoding; :mod:`argparse` calls this."""
        streams.write(message, sys.stdout if file is None else file)


def _is_number(text: str) -> bool:
    """Tell whether a text is a number or a percentage."""
    try:
        float(text.removesuffix("%"))
    except ValueError:
        return False
    return True


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of description and examples, wraps everything else, and fits the terminal."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        width = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, **{"max_help_position": 27, "width": width, **keywords})


def parser(
    prog: str,
    description: str,
    *,
    usage: str | None = None,
    examples: Sequence[str] = (),
    epilog: str = "",
) -> Parser:
    """Return the parser of a command, with examples at the end of its help.

    Parameters
    ----------
    prog : str
        Command as the user types it, such as ``vitnp segment``.
    description : str
        What the command does, in lines of at most 80 characters.
    usage : str, optional
        Command line in short.
    examples : sequence of str
        Command lines.
    epilog : str
        Lines after the examples.
    """
    lines = ["examples:", *(f"  {example}" for example in examples)] if examples else []
    return Parser(
        prog=prog, usage=usage, description=description, epilog="\n".join([*lines, *([epilog] if epilog else [])])
    )


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes
    ----------
    build_parser : callable
        Returns the parser of the arguments.
    execute : callable
        Does the work for parsed arguments and returns an exit status; raises `VitnpError` if nothing can be done.
    """

    build_parser: Callable[[], argparse.ArgumentParser]
    execute: Callable[[argparse.Namespace], int]

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run with arguments, by default the process's own, and return the exit status."""
        return self.execute(self.build_parser().parse_args(argv))

    def console(self) -> NoReturn:
        """Run as a console script; see :func:`run`."""
        run(self)


@contextlib.contextmanager
def stage_progress(stage: str, total: int, *, quiet: bool) -> Iterator[Callable[[int], object]]:
    """Show a progress bar for one stage on stderr, if that is a terminal."""
    if quiet or not streams.is_terminal(sys.stderr):
        yield lambda steps: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=stage, dynamic_ncols=True, leave=False) as bar:
        yield bar.update


def progress(
    items: Iterable[Item], total: int, *, quiet: bool, unit: str = "photograph"
) -> Generator[Item, None, None]:
    """Yield items, with a progress bar on stderr if there are several and stderr is a terminal.

    A generator is closed at the end, even if not all of its items were taken.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(getattr(items, "close", lambda: None))
        if not quiet and total > 1 and streams.is_terminal(sys.stderr):
            from tqdm import tqdm

            items = tqdm(items, total=total, unit=f" {unit}s", dynamic_ncols=True, leave=False)
        yield from items


class Outcome(Protocol):
    """What became of one photograph."""

    @property
    def photograph(self) -> Path:
        """Path of the photograph."""

    @property
    def error(self) -> VitnpError | None:
        """Why it failed, if it did."""


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


def report_outcomes(
    outcomes: Generator[AnyOutcome, None, None],
    failures: list[VitnpError],
    report: Callable[[AnyOutcome], None],
    *,
    as_json: bool,
) -> int:
    """Report the outcomes of photographs as they arrive.

    Parameters
    ----------
    outcomes : generator of Outcome
        Closed at the end, even after an exception.
    failures : list
        List to which the errors are appended.
    report : callable
        Prints an outcome without error.
    as_json : bool
        Whether failures get a JSON line on stdout at once.

    Returns
    -------
    int
        Number of photographs that succeeded.
    """
    done = 0
    with contextlib.closing(outcomes):
        for outcome in outcomes:
            if outcome.error:
                failures.append(outcome.error)
                report_failure(outcome.error, as_json=as_json, photograph=outcome.photograph)
            else:
                report(outcome)
                done += 1
    return done


def say_capped(photograph: Path, max_tokens: int, *, quiet: bool) -> None:
    """Print a notice that the patch grid of a photograph was made coarser."""
    say(f"{photograph}: the patch grid was made coarser to stay within --max-tokens {max_tokens}", quiet=quiet)


def list_failures(failures: Sequence[Exception], total: int, what: str = "") -> None:
    """Print which of `total` inputs failed, one line each; equal ones, as of a full disk, are counted."""
    say(f"{len(failures)} of {total}{what and ' '}{what} failed:")
    for error, count in Counter(map(str, failures)).items():
        streams.print_error(f"  {error}" if count == 1 else f"  {error} ({count} times)")


def report_failure(error: VitnpError, *, as_json: bool, photograph: Path | str | None = None) -> None:
    """Print the JSON line of a failure; without JSON, failures are listed at the end."""
    if as_json:
        about = {} if photograph is None else path_entries("photograph", photograph)
        print_json({**about, "status": "failed", "error": str(error)})


def conclude(failures: Sequence[VitnpError], total: int, done: int, *, left_out: str = "") -> int:
    """Print what failed of `total` inputs, of which `done` succeeded, and return the exit status.

    Pictures of other kinds that folders hold, `left_out` in words, are a notice and no failure.
    """
    if left_out:
        advice = "; videos are named by themselves" if left_out.endswith("video") or " video," in left_out else ""
        say(f"left out, because vitnp does not read them in folders: {left_out}{advice}")
    if failures and total > 1:
        list_failures(failures, total)
    elif failures:
        say_error(failures[0])
    return EXIT_OK if not failures else EXIT_SOME_FAILED if done else EXIT_USAGE

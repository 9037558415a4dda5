"""``vitnp`` and ``python -m vitnp``: hand over to one of the commands."""

from __future__ import annotations

import importlib
import sys

from vitnp.cli import shared

COMMANDS = {
    "segment": "masks, overlays and cutouts of photographs",
    "features": "keys and CLS tokens, for other programs",
    "evaluate": "scores against true masks, classes or boxes",
    "weights": "checkpoints: list, fetch, convert, info",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``vitnp COMMAND ...``.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default the process's own.

    Returns
    -------
    int
        Exit status.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"vitnp.cli.{argv[0]}").main(argv[1:])
    listing = "\n".join(f"  vitnp {name:<10}{what}" for name, what in COMMANDS.items())
    parser = shared.parser(
        "vitnp", "Object masks from unlabeled photographs, in NumPy, without torch.", usage="vitnp COMMAND [options]"
    )
    parser.formatter_class = shared.argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        f"commands:\n{listing}\n\nEach takes --help and --version, and runs as `python -m vitnp.COMMAND` as well."
    )
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help=shared.argparse.SUPPRESS)
    parser.parse_args(argv)
    parser.print_help()
    return shared.EXIT_OK


def console() -> None:
    """Entry point of the console script."""
    shared.run(main)

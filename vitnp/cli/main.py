"""``vitnp COMMAND ...`` and ``python -m vitnp COMMAND ...``: run one of the commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from vitnp.cli import shared
from vitnp.options import enumerate_words

COMMANDS = {
    "segment": "masks, overlays and cutouts of photographs",
    "watch": "segment what arrives in a folder",
    "export": "COCO, YOLO, VOC, LabelMe, Label Studio, from a finished run",
    "apply": "what a person has decided on gallery.html, in all outputs",
    "features": "keys and CLS tokens, for other programs",
    "similar": "the photographs that are most similar to others",
    "duplicates": "near duplicates, and the one of each group to keep",
    "match": "corresponding points of the objects in two photographs",
    "evaluate": "scores against true masks, classes or boxes",
    "weights": "checkpoints: list, fetch, convert, info",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vitnp COMMAND ...`` with arguments, by default the process's own, and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"vitnp.cli.{argv[0]}").main(argv[1:])
    listing = "\n".join(f"  vitnp {name:<11}{summary}" for name, summary in COMMANDS.items())
    parser = shared.parser(
        "vitnp",
        "Object masks from unlabeled photographs, in NumPy, without torch.",
        usage="vitnp COMMAND [options]",
        epilog=f"commands:\n{listing}\n\nEach takes --help and --version, and runs as `python -m vitnp COMMAND` too.",
    )
    if argv and not argv[0].startswith("-"):
        parser.error(f"COMMAND must be one of {enumerate_words(tuple(COMMANDS))}, got {argv[0]!r}")
    parser.parse_args(argv)
    parser.print_help()
    return shared.EXIT_OK


def console() -> None:
    """Run as a console script."""
    shared.run(main)

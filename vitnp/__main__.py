"""``python -m vitnp``: which commands there are."""

from __future__ import annotations

from vitnp import cli

COMMANDS = """\
commands:
  python -m vitnp.segment PHOTO …     masks, overlays and cutouts of photographs
  python -m vitnp.features PHOTO …    keys and CLS tokens alone, for other programs
  python -m vitnp.evaluate …          scores against true masks, classes or boxes
  python -m vitnp.weights …           checkpoints: list, fetch, convert, info

Each takes --help and --version."""


def main(argv: list[str] | None = None) -> int:
    made = cli.parser("python -m vitnp", "Unsupervised segmentation in NumPy, without torch.")
    made.formatter_class = cli.argparse.RawDescriptionHelpFormatter
    made.epilog = COMMANDS
    made.parse_args(argv)
    made.print_help()
    return cli.EXIT_OK


if __name__ == "__main__":
    cli.run(main)

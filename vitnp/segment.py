"""``python -m vitnp.segment``: see :mod:`vitnp.cli.segment`."""

from vitnp.cli import shared
from vitnp.cli.segment import main

if __name__ == "__main__":
    shared.run(main)

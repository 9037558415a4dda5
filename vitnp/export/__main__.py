"""``python -m vitnp.export``: see :mod:`vitnp.cli.export`."""

from vitnp.cli import shared
from vitnp.cli.export import main

if __name__ == "__main__":
    shared.run(main)

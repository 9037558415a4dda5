"""``python -m vitnp.features``: see :mod:`vitnp.cli.features`."""

from vitnp.cli import shared
from vitnp.cli.features import main

if __name__ == "__main__":
    shared.run(main)

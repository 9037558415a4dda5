"""``python -m vitnp.weights``: see :mod:`vitnp.cli.weights`."""

from vitnp.cli import shared
from vitnp.cli.weights import main

if __name__ == "__main__":
    shared.run(main)

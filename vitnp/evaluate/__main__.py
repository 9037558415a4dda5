"""``python -m vitnp.evaluate``: see :mod:`vitnp.cli.evaluate`."""

from vitnp.cli import shared
from vitnp.cli.evaluate import main

if __name__ == "__main__":
    shared.run(main)

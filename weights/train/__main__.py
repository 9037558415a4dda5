"""``python -m vitnp.weights.train``: see :mod:`vitnp.weights.train.cli`."""

from vitnp.weights.train.cli import main

from vitnp.cli import shared

if __name__ == "__main__":
    shared.run(main)

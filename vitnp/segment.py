"""``python -m vitnp.segment``: see :mod:`vitnp.cli.segment`."""

from vitnp.cli.segment import console

if __name__ == "__main__":
    console()

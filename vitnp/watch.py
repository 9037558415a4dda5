"""``python -m vitnp.watch``: see :mod:`vitnp.cli.watch`."""

from vitnp.cli.watch import console

if __name__ == "__main__":
    console()

"""``python -m vitnp``: see :mod:`vitnp.cli.main`."""

from vitnp.cli.main import console

if __name__ == "__main__":
    console()

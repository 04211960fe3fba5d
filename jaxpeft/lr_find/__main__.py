"""Runs `python -m jaxpeft.lr_find`."""

from jaxpeft import cli
from jaxpeft.lr_find import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

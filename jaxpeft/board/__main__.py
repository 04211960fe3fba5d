"""Runs `python -m jaxpeft.board`."""

from jaxpeft import cli
from jaxpeft.board import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

"""Runs `python -m jaxpeft.generate`."""

from jaxpeft import cli
from jaxpeft.generate import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

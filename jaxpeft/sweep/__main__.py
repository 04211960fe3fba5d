"""Runs `python -m jaxpeft.sweep`."""

from jaxpeft import cli
from jaxpeft.sweep import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

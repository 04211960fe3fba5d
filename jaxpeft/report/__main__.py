"""Runs `python -m jaxpeft.report`."""

from jaxpeft import cli
from jaxpeft.report import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

"""Runs `python -m jaxpeft.plan`."""

from jaxpeft import cli
from jaxpeft.plan import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

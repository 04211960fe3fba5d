"""Runs `python -m jaxpeft.evaluate`."""

from jaxpeft import cli
from jaxpeft.evaluate import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

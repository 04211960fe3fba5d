"""Runs `python -m jaxpeft.data`."""

from jaxpeft import cli
from jaxpeft.look import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

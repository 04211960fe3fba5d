"""Runs `python -m jaxpeft.export`."""

from jaxpeft import cli
from jaxpeft.export import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

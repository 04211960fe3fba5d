"""Runs `python -m jaxpeft.compare`."""

from jaxpeft import cli
from jaxpeft.compare import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

"""Runs `python -m jaxpeft.convert_config`."""

from jaxpeft import cli
from jaxpeft.convert_config import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

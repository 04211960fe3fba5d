"""Runs `python -m jaxpeft.export`."""

import sys

from jaxpeft import cli
from jaxpeft.export import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

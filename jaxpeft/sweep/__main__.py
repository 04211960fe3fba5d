"""Runs `python -m jaxpeft.sweep`."""

import sys

from jaxpeft import cli
from jaxpeft.sweep import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

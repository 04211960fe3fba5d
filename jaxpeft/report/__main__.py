"""Runs `python -m jaxpeft.report`."""

import sys

from jaxpeft import cli
from jaxpeft.report import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

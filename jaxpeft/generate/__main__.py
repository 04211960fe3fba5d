"""Runs `python -m jaxpeft.generate`."""

import sys

from jaxpeft import cli
from jaxpeft.generate import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

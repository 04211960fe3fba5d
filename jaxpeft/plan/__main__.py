"""Runs `python -m jaxpeft.plan`."""

import sys

from jaxpeft import cli
from jaxpeft.plan import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

"""Runs `python -m jaxpeft.diagnose`."""

import sys

from jaxpeft import cli
from jaxpeft.diagnose import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

"""Runs `python -m jaxpeft.convert_config`."""

import sys

from jaxpeft import cli
from jaxpeft.convert_config import main

if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

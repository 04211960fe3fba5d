"""Runs `python -m jaxpeft.diagnose`."""

from jaxpeft import cli
from jaxpeft.diagnose import main

if __name__ == "__main__":
    raise SystemExit(cli.process(main))

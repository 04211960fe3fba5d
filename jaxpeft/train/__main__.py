"""Runs `python -m jaxpeft.train`."""

from jaxpeft import cli
from jaxpeft.devices.huge_pages import restart_with_huge_pages
from jaxpeft.train import main

if __name__ == "__main__":
    restart_with_huge_pages()
    raise SystemExit(cli.process(main))

"""`python -m jaxpeft COMMAND ...` is `jaxpeft COMMAND ...`."""

from jaxpeft.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

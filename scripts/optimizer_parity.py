"""Every optimizer beside its reference over 1000 steps: docs/optimizers.md's table.

    python scripts/optimizer_parity.py
    python scripts/optimizer_parity.py --steps 200 --only adamw lion

Needs the references of the test extra. Exits with 1 where a bound is broken.
"""

import argparse
import importlib
import pkgutil

import oracles
from oracles import testbed


def rows() -> list[testbed.Row]:
    """The rows of every module of `oracles`."""
    names = [m.name for m in pkgutil.iter_modules(oracles.__path__)]
    modules = [importlib.import_module(f"oracles.{name}") for name in names]
    return [row for module in modules for row in getattr(module, "ROWS", ())]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of each course")
    parser.add_argument(
        "--only", nargs="*", help="rows whose name contains one of these"
    )
    args = parser.parse_args()
    print("| optimizer | reference | loop | measure | distance | bound | moved |")
    print("|---|---|---|---|---|---|---|")
    broken = 0
    for row in rows():
        if args.only and not any(part in row.name for part in args.only):
            continue
        found = testbed.courses(row, args.steps)
        fits = found.within(row.bound, row.measure)
        broken += not fits
        print(
            f"| {row.name} | {row.reference} | {row.loop} | {row.measure} | "
            f"{getattr(found, row.measure):.1e} | {row.bound:.0e}"
            f"{'' if fits else ' BROKEN'} | {found.moved:.2g} |",
            flush=True,
        )
    raise SystemExit(int(broken > 0))


if __name__ == "__main__":
    main()

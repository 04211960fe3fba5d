"""`python -m jaxpeft.report`: the page about a run or a sweep, written again."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxpeft report",
        description="Write report.html and the picture of a run or of a sweep again, "
        "also while it is under way or after it died. The page needs no network.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", metavar="DIR", help="the output_dir of a run")
    which.add_argument("--sweep", metavar="DIR", help="the directory of a sweep")
    args = parser.parse_args(list(argv))
    directory = Path(args.run or args.sweep)
    if not directory.is_dir():
        raise InputError(
            f"{str(directory)!r} is no directory; name the output_dir of a run or sweep"
        )

    # Imported here, so that --help answers at once.
    from jaxpeft import plots, reports, results, run_files

    if args.run:
        remarks = list(map(str, results.findings(directory)))
        page = reports.write_run(directory, remarks)
        picture = directory / run_files.PLOT
        plots.plot_losses(directory / run_files.METRICS, picture, str(directory))
    else:
        page, picture = reports.write_sweep(directory), directory / run_files.SWEEP_PLOT
        plots.plot_sweep(run_files.read_sweep(directory), picture, str(directory))
    console.say(f"wrote {page} and {picture.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

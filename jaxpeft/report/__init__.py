"""`python -m jaxpeft.report`: the page about a run or a sweep, written again."""

from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError
from jaxpeft.rundir import sweep_files


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: there is no such directory, or it is not that of a run or a sweep.
    """
    parser = cli.parser(
        "report",
        "Write report.html and the picture of a run or of a sweep again, "
        "also while it is under way or after it died. The page needs no network.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--run", metavar="DIR", type=cli.path, help="the output_dir of a run"
    )
    which.add_argument(
        "--sweep",
        metavar="DIR",
        type=cli.path,
        help="the directory of a sweep",
    )
    args = parser.parse_args(list(argv))
    directory = Path(args.run or args.sweep)
    if not directory.is_dir():
        raise InputError(
            f"{str(directory)!r} is no directory; name the output_dir of a run or sweep"
        )

    # Imported here, so that --help answers at once.
    from jaxpeft.diagnose import findings
    from jaxpeft.report import plots, run_page, sweep_page
    from jaxpeft.rundir import files

    if args.run:
        remarks = list(map(str, findings.of_run(directory)))
        page = run_page.write_run(directory, remarks)
        picture = directory / files.PLOT
        plots.plot_losses(directory / files.METRICS, picture, str(directory))
    else:
        page, picture = (
            sweep_page.write_sweep(directory),
            directory / sweep_files.SWEEP_PLOT,
        )
        plots.plot_sweep(sweep_files.read_sweep(directory), picture, str(directory))
    console.say(f"wrote {page} and {picture.name}")
    return 0

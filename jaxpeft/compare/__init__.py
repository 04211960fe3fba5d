"""`python -m jaxpeft.compare RUN RUN ...`: runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: one of the directories is not that of a run or a sweep, or a file
            cannot be written where it was asked for.
    """
    parser = cli.parser(
        "compare",
        "Show runs side by side: the settings in which they differ, losses, scores, "
        "speed and memory. Runs that are under way, dead or damaged are shown as such. "
        "A sweep's directory stands for all of its points.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=cli.path,
        help="the output_dir of a run, or the directory of a sweep",
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=cli.path, help="write a line for each run, too"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=cli.path,
        help="write it as a page with all curves, too",
    )
    args = parser.parse_args(list(argv))
    for option in ("csv", "html"):
        file = getattr(args, option)
        if file and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
            raise InputError(
                f"--{option}: {file!r} is no file in a directory that exists; name one"
            )

    # Imported here, so that --help answers at once.
    from jaxpeft.compare import page, record, table

    records = record.read_all([Path(run) for run in args.runs])
    for line in table.lines(records):
        console.say(line)
    if args.csv:
        table.write_csv(Path(args.csv), records)
    if args.html:
        page.write(Path(args.html), records)
    for file in filter(None, (args.csv, args.html)):
        console.say(f"wrote {file}")
    return 0

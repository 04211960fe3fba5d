"""`python -m jaxpeft.board`: runs in a browser: made, watched, compared and tried."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError

PORT = 8470
HERE = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: a folder is missing, the port is taken, or a package is not there.
    """
    args = _parser().parse_args(list(argv))
    if (code := _as_process(args)) is not None:
        return code
    folders = [Path(folder) for folder in args.runs or ["runs"]]
    if not 0 <= args.port < 2**16:
        raise InputError(f"--port: found {args.port}; give a number from 0 to 65535")

    if args.places < 1:
        raise InputError(f"--places: found {args.places}; give 1 or more")
    _make(folders)

    # Imported here, so that --help answers at once.
    try:
        from jaxpeft.board import server
        from jaxpeft.board.processes import TOKEN
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("jaxpeft"):
            raise
        raise InputError(
            f"the board needs the package {error.name}; install it with "
            "pip install 'jaxpeft[board]'"
        ) from error

    console.say("serving " + ", ".join(map(str, folders)))
    token = os.environ.get(TOKEN, "")
    server.serve(folders, args.host, args.port, args.places, token)
    return 0


def _make(folders: Sequence[Path]) -> None:
    """Makes those that are not there yet, as before anybody's first run.

    Raises:
        InputError: what a folder would lie in is not there either, or a file is there.
    """
    missing = [folder for folder in folders if not folder.is_dir()]
    wrong = [x for x in missing if x.exists() or not x.absolute().parent.is_dir()]
    if wrong:
        raise InputError(
            *(
                f"--runs: {str(folder)!r} is no folder; name the one in which the "
                "output_dir of runs are"
                for folder in wrong
            )
        )
    for folder in missing:
        try:
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"--runs: {str(folder)!r} is not there and cannot be made: "
                f"{error.strerror}"
            ) from error
        console.say(f"made {folder}, in which there is no run yet")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "board",
        "Serve pages on which the runs below some folders can be watched, stopped, "
        "compared and tried, and new ones made. It stores nothing of its own: the "
        "files of the runs are all there is. Only the address that it prints opens it, "
        "since that holds a token.",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        nargs="+",
        action="extend",
        type=cli.path,
        help="folders with runs and sweeps up to six folders below "
        "(default: runs); made where only the last part of the name is missing",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"default: {PORT}; 0: any that is free"
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default=HERE,
        help=f"where to listen (default: {HERE}, this machine alone). Elsewhere what "
        "is sent can be read on the way: prefer a tunnel, ssh -L",
    )
    parser.add_argument(
        "--places",
        metavar="N",
        type=int,
        default=1,
        help="how many of the commands that it starts run at a time; default: 1",
    )
    # What the queue starts: the process of one of its jobs.
    parser.add_argument("--job", help=argparse.SUPPRESS)
    # Likewise that of a model which is talked with.
    parser.add_argument("--talk", action="store_true", help=argparse.SUPPRESS)
    # Likewise one that opens the data of a run.
    parser.add_argument("--examples", action="store_true", help=argparse.SUPPRESS)
    return parser


def _as_process(args: argparse.Namespace) -> int | None:
    """Does what the board has started this process for; None: nothing, it is one."""
    if args.job:
        from jaxpeft.board import processes

        return processes.work(Path(args.job))
    if args.examples:
        from jaxpeft.board import examples

        return examples.main()
    if args.talk:
        from jaxpeft.board import talk

        return talk.main()
    return None

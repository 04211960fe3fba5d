"""`python -m jaxpeft.data`: the examples as the model sees them, and their statistics.

The command has the name of the library that it looks into, and a room of its own.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: something is wrong with the configuration, the tokenizer or the
            data.
    """
    parser = cli.parser(
        "data",
        "Show the first examples of each source as the model sees them, what of them "
        "is learned and why they were cut, and the data in numbers. Reads the "
        "tokenizer and the data alone.",
    )
    cli.config_arguments(parser)
    parser.add_argument(
        "--show",
        metavar="N",
        type=int,
        default=3,
        help="how many examples of each source to show (default: 3)",
    )
    parser.add_argument(
        "--html", metavar="FILE", type=cli.path, help="write it as a page, too"
    )
    args = parser.parse_intermixed_args(list(argv))
    if args.show < 0:
        raise InputError(f"--show: found {args.show}; give a number from 0 on")
    if args.html and not Path(args.html).absolute().parent.is_dir():
        raise InputError(
            f"--html: {str(Path(args.html).parent)!r} is no directory; name a file in "
            "one that exists"
        )
    cli.begin(f"looking at the data of {args.config}")

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import configuration
    from jaxpeft.look.look import look

    cfg = configuration.open_config(args.config, args.overrides)
    look(cfg, args.show, None if args.html is None else Path(args.html))
    return 0

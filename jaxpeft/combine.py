"""`python -m jaxpeft.combine`: several adapters of one model as a single one."""

import argparse
import math
from collections.abc import Sequence

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = parse(argv)
    cli.begin(f"combining {len(args.adapter)} adapters of {args.model}")

    # Imported here, so that --help answers at once.
    from jaxpeft.export import forms

    forms.combine(args.model, args.adapter, args.out, method=args.method, r=args.r)
    console.say(f"wrote and verified {args.out}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `jaxpeft combine`, each `--adapter` as (path, weight).

    Raises:
        InputError: for those without sense.
    """
    parser = cli.parser(
        "combine",
        "Write the weighted sum of several LoRA adapters of one model as a "
        "single PEFT adapter, reopened and verified.",
    )
    parser.add_argument(
        "--model", required=True, metavar="PATH", help="a model's folder or hub id"
    )
    parser.add_argument(
        "--adapter",
        required=True,
        action="append",
        metavar="PATH:WEIGHT",
        help="an adapter's folder or hub id, and the factor of its update, such as "
        "runs/a/adapter:0.7; give it once for each adapter",
    )
    parser.add_argument(
        "--method",
        default="cat",
        choices=("cat", "svd"),
        help="cat (the default): the exact sum, whose rank is the sum of the ranks; "
        "svd: the nearest one of rank --r",
    )
    parser.add_argument(
        "--r",
        type=int,
        metavar="R",
        help="the rank that svd leaves; default: the largest of the adapters'",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        type=cli.path,
        help="where to write it",
    )
    args = parser.parse_args(list(argv))
    args.adapter = [_weighted(text) for text in args.adapter]
    if args.r is not None and (args.r < 1 or args.method == "cat"):
        raise InputError(
            f"--r: found {args.r} with --method {args.method}; give a rank of 1 or "
            "more, and --method svd"
        )
    return args


def _weighted(text: str) -> tuple[str, float]:
    path, _, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not path or not math.isfinite(weight):
        raise InputError(
            f"--adapter: found {text!r}; give a folder, a colon and the adapter's "
            "weight, such as runs/a/adapter:0.5"
        )
    return path, weight


if __name__ == "__main__":
    raise SystemExit(cli.process(main))

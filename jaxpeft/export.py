"""`python -m jaxpeft.export`: a run as a PEFT adapter or a merged model."""

import argparse
import sys
from collections.abc import Sequence

from jaxpeft import cli, console


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxpeft export",
        description="Write a finished run for other programs. What was written is "
        "reopened and verified.",
    )
    parser.add_argument(
        "--run", required=True, metavar="DIR", help="the output_dir of a finished run"
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("peft", "vllm", "merged"),
        help="peft: an adapter for PEFT, as it was trained; vllm: one of a single rank "
        "and scale, which vLLM needs; merged: a Hugging Face model with the adapter "
        "folded in, and its tokenizer",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write it")
    parser.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="of the merged weights; default: the base's, as the run stored it",
    )
    args = parser.parse_args(list(argv))

    # Imported here, so that --help answers at once.
    from jaxpeft import trained

    trained.export(args.run, args.to, args.out, args.dtype)
    console.say(f"wrote and verified {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

"""`python -m jaxpeft.export`: a trained model in the forms of other programs."""

import argparse
from collections.abc import Sequence

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: the arguments contradict each other, or the model cannot be written
            in that form or there.
    """
    args = parse(argv)
    cli.begin(f"exporting {args.run or args.model} to {args.out}")

    # Imported here, so that --help answers at once.
    from jaxpeft.export import forms
    from jaxpeft.export.resized import resized

    if args.tokenizer:
        remark = resized(args.model, args.tokenizer, args.out, args.dtype)
    else:
        remark = forms.export(
            args.to,
            args.out,
            args.dtype,
            run=args.run,
            model=args.model,
            adapter=args.adapter,
        )
    if remark is not None:
        console.say(remark)
    console.say(f"wrote and verified {args.out}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments, checked for contradictions.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: there is not exactly one of `--run` and `--model`, or `--adapter`
            stands without `--model`, or `--tokenizer` beside what it does not go with.
    """
    parser = cli.parser(
        "export",
        "Write a finished run, or a model and its adapter, for other "
        "programs. What was written is reopened and verified.",
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=cli.path,
        help="the output_dir of a finished run",
    )
    parser.add_argument("--model", metavar="PATH", help="a model's folder or hub id")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter for --model")
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        type=cli.path,
        help="a tokenizer with tokens added to that of --model: with --to merged the "
        "model is written with it, and with a row in its embedding for each of them",
    )
    parser.add_argument(
        "--to",
        required=True,
        choices=("peft", "vllm", "merged", "bnb4"),
        help="peft: an adapter for PEFT, as it was trained; vllm: one of a single rank "
        "and scale, which vLLM needs; merged: a Hugging Face model with the adapter "
        "folded in, and its tokenizer, with a line about how the logits changed; bnb4: "
        "that model in bitsandbytes' nf4",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        type=cli.path,
        help="where to write it",
    )
    parser.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="of the merged weights; default: the base's, as the run stored it",
    )
    args = parser.parse_args(list(argv))
    problems = []
    if bool(args.run) == bool(args.model):
        problems.append("give one of --run DIR and --model PATH")
    if args.adapter and not args.model:
        problems.append("--adapter belongs to --model; a run has its own")
    if args.tokenizer and (not args.model or args.adapter or args.to != "merged"):
        problems.append(
            "--tokenizer goes with --model and --to merged alone: resize the model "
            "first, then train over what was written"
        )
    if problems:
        raise InputError(*problems)
    return args

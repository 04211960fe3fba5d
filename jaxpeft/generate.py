"""`python -m jaxpeft.generate`: answers a prompt with a model and its adapter."""

import argparse
import sys
from collections.abc import Sequence

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = parse(argv)

    # Imported here, so that --help answers at once.
    from jaxpeft import trained
    from jaxpeft.sampling import Sampling

    model = trained.load(args.run, args.model, args.adapter, args.dtype)
    answers = model.answer(
        args.prompt,
        system=args.system,
        raw=args.raw,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
        ),
    )
    for answer in answers:
        console.say(answer)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments; raises InputError for those that contradict."""
    parser = argparse.ArgumentParser(
        prog="jaxpeft generate",
        description="Answer prompts through the tokenizer's chat template.",
    )
    parser.add_argument("--run", metavar="DIR", help="the output_dir of a finished run")
    parser.add_argument("--model", metavar="PATH", help="a model's folder or hub id")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter for --model")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="the user's message; give it several times for several answers",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the text as it is, without the chat template",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="default: 256"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 (the default) takes the most probable token each time",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the most probable tokens that make up P; default: 1",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K most probable tokens; default: 0, all",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, tokens of the prompt and the answer become less probable; "
        "default: 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing; default: 0")
    parser.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; default: the run's, or float32",
    )
    args = parser.parse_args(list(argv))
    problems = []
    if bool(args.run) == bool(args.model):
        problems.append("give one of --run DIR and --model PATH")
    if args.adapter and not args.model:
        problems.append("--adapter belongs to --model; a run has its own")
    if not args.prompt:
        problems.append("--prompt: missing; give the text to answer")
    if problems:
        raise InputError(*problems)
    return args


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

"""`python -m jaxpeft.generate`: answers prompts with a model and its adapters."""

import argparse
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxpeft import cli, console
from jaxpeft.errors import InputError
from jaxpeft.generate import arguments

NAMED = re.compile(r"([\w.-]+)=(.+)")


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = parse(argv)
    cli.begin("loading the model", aside=True)

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import trained
    from jaxpeft.devices import programs
    from jaxpeft.generate import answering

    arguments.check(args)
    records, questions = _questions(args)
    programs.keep()
    one = args.adapter[0] if args.adapter else None
    model = trained.load(args.run, args.model, one, args.dtype, args.several)
    settings: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "sampling": arguments.sampling(args, model.base.directory),
        "stop": args.stop,
    }
    if args.stream:
        for pieces in answering.stream(model, questions, **settings):
            for piece in pieces:
                console.write(piece)
            console.say()
        return 0
    size = args.batch_size or len(questions)
    answers = answering.answers(model, questions, batch_size=size, **settings)
    if args.prompts is None:
        for answer in answers:
            console.say(answer)
    else:
        _write(args.out, zip(records, answers, strict=True))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `jaxpeft generate`.

    `several` among them is {name: folder} of named adapters, which `adapter` then
    leaves out.

    Raises:
        InputError: for those that contradict.
    """
    parser = cli.parser(
        "generate",
        "Answer prompts through the tokenizer's chat template.",
    )
    arguments.add_model(
        parser,
        "a PEFT adapter for --model; NAME=DIR, several times, for several of which "
        "each request chooses one",
    )
    _add_requests(parser)
    arguments.add_sampling(parser, max_new_tokens=256)
    args = parser.parse_args(list(argv))
    problems = arguments.problems(args) + _problems(args)
    args.several, more = _named(args)
    if problems or more:
        raise InputError(*problems, *more)
    if args.several:
        args.adapter = []
    if args.prompts and args.batch_size is None:
        args.batch_size = 8
    return args


def _add_requests(parser: argparse.ArgumentParser) -> None:
    """Adds the options for what is asked, of which adapter, and where answers go."""
    parser.add_argument(
        "--use",
        metavar="NAME",
        help="the adapter of requests that name none; 'base' is the model alone",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        action="append",
        help="the user's message; give it several times for several answers",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=cli.path,
        help="requests, a JSON object a line: prompt or messages, and perhaps system, "
        "adapter, id; each is written again with its answer",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=cli.path,
        help="where --prompts writes; default: to the terminal",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="requests answered together; default: 8 with --prompts, else all",
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the text as it is, without the chat template",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="write each answer while it is made, one prompt after another",
    )


def _problems(args: argparse.Namespace) -> list[str]:
    problems = []
    if not args.prompt and not args.prompts:
        problems.append("--prompt: missing; give the text to answer, or --prompts FILE")
    if args.prompt and args.prompts:
        problems.append("--prompts: found beside --prompt; give one of them")
    if args.out and not args.prompts:
        problems.append("--out belongs to --prompts; redirect the output instead")
    if args.out and Path(args.out).exists():
        problems.append(f"--out: {args.out!r} exists; name a new file")
    if args.stream and args.prompts:
        problems.append("--stream belongs to --prompt; a file is answered in batches")
    if args.stream and args.batch_size:
        problems.append("--batch-size: --stream answers one prompt after another")
    if args.batch_size is not None and args.batch_size < 1:
        problems.append(f"--batch-size: found {args.batch_size}; it must be 1 or more")
    if args.system and args.raw:
        problems.append("--system needs the chat template; leave out it or --raw")
    return problems


def _named(args: argparse.Namespace) -> tuple[dict[str, str], list[str]]:
    """The named adapters; there are none where one stands alone.

    Returns:
        ({name: folder}, problems).
    """
    matches = [None if os.path.exists(a) else NAMED.fullmatch(a) for a in args.adapter]
    folders = {match[1]: match[2] for match in matches if match}
    problems = []
    if len(args.adapter) > 1 and not all(matches):
        plain = args.adapter[matches.index(None)]
        problems.append(
            f"--adapter: found {plain!r} among several; write NAME=DIR for each"
        )
    elif len(folders) < len(args.adapter) and folders:
        problems.append("--adapter: two have the same name; give each its own")
    if args.use and not folders:
        problems.append(
            f"--use: found {args.use!r} without named adapters; add --adapter NAME=DIR"
        )
    known = [*folders, "base"]
    if folders and args.use and args.use not in known:
        problems.append(f"--use: found {args.use!r}; choose from {', '.join(known)}")
    if "base" in folders:
        problems.append("--adapter: 'base' is the model alone; choose another name")
    return folders, problems


def _questions(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Any]]:
    """The requests, each with its adapter where there are some to choose.

    Returns:
        (records, questions); only a file has records.
    """
    from jaxpeft.generate import prompts
    from jaxpeft.generate.answering import Question

    usual = args.use
    if len(args.several) == 1 and usual is None:
        [usual] = args.several
    if args.prompts:
        records, questions = prompts.read(
            args.prompts, system=args.system, raw=args.raw, adapter=usual
        )
    else:
        records = []
        questions = [
            Question(
                text if args.raw else prompts.conversation(text, args.system),
                "--prompt",
                usual,
            )
            for text in args.prompt
        ]
    problems = [
        f"{question.place}: adapter: missing; name one of "
        f"{', '.join([*args.several, 'base'])}, or give --use NAME for all without"
        for question in questions
        if args.several and question.adapter is None
    ]
    if problems:
        raise InputError(*problems[:10])
    return records, questions


def _write(path: str | None, answered: Iterable[tuple[dict[str, Any], str]]) -> None:
    """A JSON object a line, to a new file or to standard output."""
    lines = (
        json.dumps({**record, "answer": answer}, ensure_ascii=False)
        for record, answer in answered
    )
    if path is None:
        for line in lines:
            console.say(line)
        return
    with open(path, "x", encoding="utf-8") as file:
        for line in lines:
            file.write(f"{line}\n")
            file.flush()

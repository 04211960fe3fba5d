"""`python -m jaxpeft.chat`: a conversation with a model in the terminal."""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxpeft import cli, console
from jaxpeft.errors import InputError, not_utf8, suggest
from jaxpeft.generate import arguments

COMMANDS = {"/reset": "begin anew", "/exit": "end (or end of file)"}


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = parse(argv)
    cli.begin("loading the model", aside=True)

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import trained
    from jaxpeft.devices import programs
    from jaxpeft.generate.dialogue import Dialogue

    arguments.check(args)
    programs.keep()
    one = args.adapter[0] if args.adapter else None
    model = trained.load(args.run, args.model, one, args.dtype)
    dialogue = Dialogue(
        model,
        system=args.system,
        max_new_tokens=args.max_new_tokens,
        sampling=arguments.sampling(args, model.base.directory),
        stop=args.stop,
    )
    for number, text in enumerate(_lines(), start=1):
        if fault := not_utf8(text):
            console.warn(f"standard input, line {number}: {fault}")
        elif text == "/exit":
            break
        elif text == "/reset":
            dialogue.reset()
        elif text.startswith("/"):
            console.warn(f"{text}: not a command{suggest(text, COMMANDS)}")
        elif text:
            _answer(dialogue, text)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `jaxpeft chat`.

    Raises:
        InputError: for those that contradict.
    """
    commands = ", ".join(f"{name}: {text}" for name, text in COMMANDS.items())
    parser = cli.parser(
        "chat",
        "Talk with a model: each line of standard input is a message, and "
        f"the answer is written while it is made. {commands}; ctrl-C ends an answer.",
    )
    arguments.add_model(parser, "a PEFT adapter for --model")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    arguments.add_sampling(parser, max_new_tokens=512)
    args = parser.parse_args(list(argv))
    problems = arguments.problems(args)
    if len(args.adapter) > 1:
        problems.append(f"--adapter: found {len(args.adapter)}; a chat has one")
    if problems:
        raise InputError(*problems)
    return args


def _lines() -> Iterator[str]:
    """What the user types, stripped; asked for with "> " where it is a terminal.

    Bytes that are no text stay in it, as `errors.not_utf8` finds them.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then has a history)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ").strip()


def _answer(dialogue: Any, text: str) -> None:
    """Says the answer; what cannot be answered is said, and the chat goes on."""
    try:
        pieces = dialogue.say(text)
    except InputError as error:
        for problem in error.problems:
            console.warn(f"{problem}; /reset begins anew")
        return
    try:
        with contextlib.closing(pieces):
            for piece in pieces:
                console.write(piece)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    console.say()


if __name__ == "__main__":
    raise SystemExit(cli.process(main))

"""Arguments that the commands share which ask a model: which one, and how it draws."""

import argparse
from typing import Any

from jaxpeft import cli
from jaxpeft.errors import InputError, not_utf8

# What generation_config.json may say too, where --generation-config asks for it.
DRAWING: dict[str, tuple[type, str, str]] = {
    "temperature": (
        float,
        "T",
        "0 takes the most probable token each time; default: 0",
    ),
    "top_k": (int, "K", "draw from the K most probable tokens; default: 0, all"),
    "top_p": (float, "P", "draw from the most probable that make up P; default: 1"),
    "repetition_penalty": (
        float,
        "R",
        "above 1, tokens that the text has already become less probable; default: 1",
    ),
}


def add_model(parser: argparse.ArgumentParser, adapter_help: str) -> None:
    """Adds --run, --model, --adapter (a list) and --dtype.

    Args:
        parser: the command's.
        adapter_help: what --adapter means there.
    """
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=cli.path,
        help="the output_dir of a finished run",
    )
    parser.add_argument("--model", metavar="PATH", help="a model's folder or hub id")
    parser.add_argument(
        "--adapter", metavar="DIR", action="append", default=[], help=adapter_help
    )
    parser.add_argument(
        "--dtype",
        default=None,
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; default: the run's, or float32",
    )


def add_sampling(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds the options that choose the tokens; `sampling` reads them.

    Args:
        parser: the command's.
        max_new_tokens: the default of --max-new-tokens.
    """
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"default: {max_new_tokens}",
    )
    parser.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        default=[],
        help="ends an answer, which is cut before it; give it several times for "
        "several, of which the first counts",
    )
    for name, (kind, metavar, text) in DRAWING.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--generation-config",
        action="store_true",
        help="take those of the four above that are not given from the model's "
        "generation_config.json",
    )
    parser.add_argument("--seed", type=int, default=0, help="of drawing; default: 0")


def problems(args: argparse.Namespace) -> list[str]:
    """The problems with the arguments of `add_model` and with texts, a line each."""
    lines = []
    for name in ("prompt", "system", "stop"):
        given = getattr(args, name, None) or []
        texts = [given] if isinstance(given, str) else given
        lines += [f"--{name}: {fault}" for fault in map(not_utf8, texts) if fault]
    if bool(args.run) == bool(args.model):
        lines.append("give one of --run DIR and --model PATH")
    if args.adapter and not args.model:
        lines.append("--adapter belongs to --model; a run has its own")
    return lines


def check(args: argparse.Namespace) -> None:
    """Checks the settings of drawing.

    Args:
        args: what a parser with `add_sampling` has read.

    Raises:
        InputError: for settings that are out of range.
    """
    from jaxpeft.models.sampling import Sampling

    complaints = Sampling(**_given(args)).problems()
    if args.max_new_tokens < 1:
        complaints.append(
            f"max-new-tokens: found {args.max_new_tokens}; it must be 1 or more"
        )
    if "" in args.stop:
        complaints.append("--stop: found an empty text; give at least one character")
    if complaints:
        raise InputError(*complaints)


def sampling(args: argparse.Namespace, directory: Any) -> Any:
    """The `Sampling` that the arguments say, and the model where they ask it.

    Args:
        args: what a parser with `add_sampling` has read.
        directory: the model's folder, whose generation_config.json counts where no
            argument is given and --generation-config is.
    """
    import dataclasses

    from jaxpeft import hf
    from jaxpeft.models.sampling import Sampling

    own = hf.sampling(directory) if args.generation_config else Sampling()
    return dataclasses.replace(own, **_given(args))


def _given(args: argparse.Namespace) -> dict[str, Any]:
    given = {n: getattr(args, n) for n in DRAWING if getattr(args, n) is not None}
    return {**given, "seed": args.seed}

"""`python -m jaxpeft.convert_config FILE`: another tool's configuration as ours.

Every key of theirs ends in one of four places: a key of ours (with a remark where the
two are not quite the same), a reason why it means nothing here, the list of what has
no equivalent, with what to do instead, or a refusal, where what it asks for cannot be
trained here at all.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpeft import cli, console, replacing
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from jaxpeft.convert_config.draft import Draft

STEPS = 1_000_000  # of a run whose length only its data says


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: the arguments contradict each other, a file cannot be read or
            written, or what it asks for cannot be trained here.
    """
    args = parse(argv)

    # Imported here, so that --help answers at once.
    from jaxpeft.convert_config.draft import ASKS_NOTHING
    from jaxpeft.convert_config.llamafactory import from_llamafactory
    from jaxpeft.convert_config.training_arguments import from_training_arguments
    from jaxpeft.convert_config.writing import to_yaml

    keys = read(args.file or args.from_training_arguments)
    if args.file:
        source = f"LLaMA-Factory's {args.file}"
        draft = from_llamafactory(keys, args.devices)
    else:
        source = f"transformers' {args.from_training_arguments}"
        draft = from_training_arguments(
            keys,
            read(args.peft) if args.peft else None,
            devices=args.devices or 1,
            model=args.model,
            data=args.data,
            eval_data=args.eval_data,
        )
    text = to_yaml(draft, source, args.out or "FILE")
    write(text, args.out, args.overwrite)
    if args.out:
        for line in report(draft):
            console.say(line)
        console.say(
            f"wrote {args.out}, and verified its keys; a run opens model and data"
        )
    else:
        console.write(text)
        for why, keys in draft.idle.items():
            if why != ASKS_NOTHING:
                console.warn(f"{', '.join(keys)}: left out: {why}")
        for key, why in draft.missing.items():
            console.warn(f"{key}: {why}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command's arguments, checked for sense.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: not exactly one file is to be translated, an option does not go with
            it, or `--devices` or `--out` cannot be used.
    """
    args = _parser().parse_args(list(argv))
    if bool(args.file) == bool(args.from_training_arguments):
        raise InputError(
            "convert_config: give one file, LLaMA-Factory's FILE or "
            "--from-training-arguments FILE"
        )
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices: found {args.devices}; give 1 or more")
    beside = [k for k in ("peft", "model", "data", "eval_data") if getattr(args, k)]
    if args.file and beside:
        raise InputError(
            f"--{beside[0].replace('_', '-')}: goes with --from-training-arguments "
            "alone; LLaMA-Factory's file says it itself"
        )
    if args.out:
        check_out(args.out, (args.file, args.from_training_arguments, args.peft))
    return args


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "convert_config",
        "Translate a configuration of LLaMA-Factory, or the arguments of "
        "transformers' Trainer, into ours, and list what has no equivalent. What is "
        "written has been read back and checked.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        type=cli.path,
        help="LLaMA-Factory's YAML or JSON",
    )
    parser.add_argument(
        "--from-training-arguments",
        metavar="FILE",
        type=cli.path,
        help="in its place: what TrainingArguments.to_json_string() gives",
    )
    parser.add_argument(
        "--peft",
        metavar="FILE",
        type=cli.path,
        help="beside training arguments: PEFT's adapter_config.json; without it the "
        "whole model trains",
    )
    parser.add_argument(
        "--model", metavar="PATH", help="beside training arguments: the model"
    )
    parser.add_argument(
        "--data", metavar="FILE", help="beside training arguments: the examples"
    )
    parser.add_argument(
        "--eval-data", metavar="FILE", help="likewise those that evaluate"
    )
    parser.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="over how many devices the batch was spread (default: 1)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=cli.path,
        help="where to write it (default: standard output)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="even if --out is there and differs"
    )
    return parser


def check_out(out: str, inputs: Sequence[str | None]) -> None:
    """Checks that `--out` is no folder and no file that is translated.

    Args:
        out: the value of `--out`.
        inputs: the files that are translated; None for one that is not given.

    Raises:
        InputError: it is one of these.
    """
    if Path(out).is_dir():
        raise InputError(f"--out: {out!r} is a folder; name a file in it")
    for path in filter(os.path.exists, filter(None, inputs)):
        if os.path.exists(out) and os.path.samefile(path, out):
            raise InputError(f"--out: {out!r} is what is translated; name another file")


def read(path: str) -> Mapping[str, Any]:
    """The mapping in a YAML or JSON file.

    Args:
        path: the file.

    Raises:
        InputError: the file cannot be read, or holds no mapping.
    """
    from jaxpeft.config import strict_yaml

    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); name an existing file"
        ) from None
    return strict_yaml.load(text, path)  # JSON is YAML


def write(text: str, out: str | None, overwrite: bool) -> None:
    """Writes a configuration where it belongs, once a run could be made of it.

    Args:
        text: the configuration as YAML.
        out: the file to write; None: it is only verified.
        overwrite: whether a file of that name with other content is replaced.

    Raises:
        InputError: no run could be made of it, or `out` is there and differs; what was
            there stays as it was.
    """
    if out and not Path(out).parent.is_dir():
        folder = str(Path(out).parent)
        raise InputError(f"--out: {folder!r} is not a folder; create it first")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        verify(path)
        content = path.read_bytes()
    if not out:
        return
    there = Path(out)
    if there.exists() and not overwrite and there.read_bytes() != content:
        raise InputError(
            f"--out: {out!r} is there and differs from what would be written; name "
            "another file, or give --overwrite"
        )
    replacing.write_text(there, text)


def verify(path: Path) -> None:
    """Checks that a run accepts a configuration.

    Args:
        path: the configuration file.

    Raises:
        InputError: a run does not accept it.
    """
    from jaxpeft.assembly import configuration, updates
    from jaxpeft.assembly.adapter import rules_of

    cfg = configuration.open_config(path)
    rules_of(cfg.adapter)
    updates.updates(cfg, cfg.training.max_steps or STEPS)


def report(draft: "Draft") -> list[str]:
    """The lines that say what became of their keys; none if all are one to one."""
    lines = []
    if draft.remarks:
        lines.append("translated, but not one to one:")
        lines += [
            f"  {key}: {remark}"
            for key, remarks in draft.remarks.items()
            for remark in remarks
        ]
    if draft.idle:
        lines.append("says nothing here:")
        lines += [f"  {', '.join(keys)}: {why}" for why, keys in draft.idle.items()]
    if draft.missing:
        lines.append("without equivalent:")
        lines += [f"  {key}: {why}" for key, why in draft.missing.items()]
    return lines

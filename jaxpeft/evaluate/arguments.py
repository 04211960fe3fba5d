"""The options of `evaluate`, beside those that commands share."""

import argparse
from pathlib import Path

from jaxpeft import cli


def add_harness(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `--tasks`.

    Args:
        parser: the command's.
    """
    group = parser.add_argument_group(
        "tasks of EleutherAI's harness (pip install 'jaxpeft[eval]')",
        "the names of the options are the harness's own",
    )
    group.add_argument(
        "--tasks",
        metavar="A,B",
        help="ask these tasks, groups or tags in place of the evaluation data",
    )
    group.add_argument(
        "--include_path",
        metavar="DIR",
        type=cli.path,
        help="a folder with tasks of yours; Python files that they name as !function "
        "are run",
    )
    group.add_argument(
        "--limit",
        metavar="N",
        type=float,
        help="documents of each task, or below 1 the share of them; default: all",
    )
    group.add_argument(
        "--num_fewshot",
        metavar="N",
        type=int,
        help="examples before each question; default: as a task says",
    )
    group.add_argument(
        "--apply_chat_template",
        action="store_true",
        help="write questions as turns of a chat",
    )
    group.add_argument(
        "--batch_size",
        metavar="N",
        type=int,
        help="sequences at a time; default: as the configuration says, or 8",
    )
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a model's folder or hub id, in place of a run or a configuration",
    )
    group.add_argument("--adapter", metavar="DIR", help="a PEFT adapter for --model")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights of --model; default: float32",
    )


def problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with the arguments of the command, a line each.

    Args:
        args: what its parser has read.
    """
    found = []
    if not args.tasks and bool(args.run) == bool(args.config):
        found.append("give one of --run DIR and --config FILE")
    given = [args.run, args.config, args.model]
    if args.tasks and len([one for one in given if one]) != 1:
        found.append("give one of --run DIR, --config FILE and --model PATH")
    if args.predictions and Path(args.predictions).exists():
        found.append(f"--predictions: {args.predictions!r} exists; name a new file")
    if not args.tasks:
        names = "include_path limit num_fewshot apply_chat_template batch_size model"
        names += " adapter dtype"
        found += [
            f"--{name}: belongs to --tasks, which is missing; name the tasks"
            for name in names.split()
            if getattr(args, name) not in (None, False)
        ]
    elif args.metric:
        found.append("--metric: found beside --tasks, which score themselves")
    if (args.adapter or args.dtype) and args.tasks and not args.model:
        found.append("--adapter and --dtype: belong to --model; a run has its own")
    if args.model and args.overrides:
        found.append(f"{args.overrides[0]}: there is no configuration with --model")
    limit = args.limit
    if limit is not None and not (0 < limit < 1 or (limit >= 1 and limit % 1 == 0)):
        found.append(
            f"--limit: found {limit:g}; it must be a number of documents, 1 or more, "
            "or a share of them below 1"
        )
    for name, least in {"num_fewshot": 0, "batch_size": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            found.append(f"--{name}: found {value}; it must be {least} or more")
    return found

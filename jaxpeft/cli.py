"""The command line: which commands there are, and how each of them ends."""

import argparse
import errno
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from jaxpeft import __version__, console
from jaxpeft.devices import cpus, launch, termination
from jaxpeft.devices.huge_pages import restart_with_huge_pages
from jaxpeft.errors import (
    EXIT_INPUT,
    EXIT_NUMERICS,
    EXIT_PREEMPTED,
    InputError,
    NumericsError,
    Preempted,
    suggest,
)

EXIT_FAULT, EXIT_INTERRUPTED = 1, 130
EXIT_CLOSED = 141  # as a shell says it of a program that SIGPIPE ends
# Of the place where files go, not of the program.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

# Known without its import, which only commands of several processes need.
CLUSTER = f"{launch.__package__}.cluster"

# Each is a module of the package with a `main(argv) -> int`, imported when it is run.
COMMANDS: dict[str, str] = {
    "data": "the examples as the model sees them, what is learned, and statistics",
    "train": "fine-tune a model as a configuration file says; continues by itself",
    "lr_find": "which learning rate to train with: a range test, and its curve",
    "sweep": "train many settings over one base, and say which is best",
    "plan": "what a run needs on each device, from shapes alone",
    "diagnose": "what the metrics of a run say of its settings, and the remedies",
    "evaluate": "losses over the evaluation data, and scores of answers to it",
    "generate": "answer prompts with a trained model",
    "chat": "talk with a trained model in the terminal",
    "export": "write a run as an adapter for PEFT or vLLM, or as a merged model",
    "report": "a page with curves, samples and figures of a run or a sweep",
    "compare": "runs side by side: settings that differ, losses, scores, speed, memory",
    "board": "runs in a browser: made, watched, stopped, compared and tried",
    "combine": "the weighted sum of several adapters as a single one",
    "convert_config": "translate a configuration of LLaMA-Factory or transformers",
    "cache": "what is kept between commands: tokenized examples, compiled programs",
    "doctor": "whether this machine can train, and what to do if not",
}

# The rooms of commands whose name is a library's.
ROOMS: dict[str, str] = {"data": "look"}

# Where each has its examples.
PAGES: dict[str, str] = {
    "data": "docs/data.md",
    "train": "README.md and configs/",
    "lr_find": "docs/learning_rate.md",
    "sweep": "docs/sweeps.md",
    "plan": "docs/planning.md",
    "diagnose": "docs/learning_rate.md",
    "evaluate": "docs/evaluation.md",
    "generate": "docs/generation.md",
    "chat": "docs/generation.md",
    "export": "docs/export.md",
    "report": "docs/reports.md",
    "compare": "docs/reports.md",
    "board": "docs/board.md",
    "combine": "docs/export.md",
    "convert_config": "docs/migrating.md",
    "cache": "docs/data.md",
    "doctor": "README.md",
}
KEYS = "All keys: docs/configuration.md. To try it: --config jaxpeft:quickstart.yaml"

# The type of options that name a file: a shell leaves `--out=~/x` as it is.
path = os.path.expanduser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jaxpeft COMMAND ...` and returns its exit code.

    Args:
        argv: the arguments after the program's name; those of the process by default.
    """
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if argv is None and command == "train":
        restart_with_huge_pages()
    if command in COMMANDS:
        function = importlib.import_module(
            f"jaxpeft.{ROOMS.get(command, command)}"
        ).main
    else:
        function = functools.partial(_without_command, command)
    if argv is not None:
        return run(function, rest)
    return process(lambda arguments: function(arguments[1:]))


def _without_command(word: str, _: Sequence[str]) -> None:
    if word in ("-h", "--help", "help"):
        console.say(usage())
    elif word == "--version":
        console.say(f"jaxpeft {__version__}")
    elif word:
        raise InputError(f"{word!r} is not a command{suggest(word, COMMANDS)}")
    else:
        raise InputError(f"no command given; name one\n\n{usage()}")


def run(main: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a command's `main` and returns the exit code that its outcome stands for.

    Failures that a person can act on become lines on standard error; any other
    exception is a fault of the program, and passes through with its traceback. SIGTERM
    is 75, see `devices.termination`; a closed standard output is 141, without a word. A
    process among several ends its part in the run, see `cluster.leave`.

    Args:
        main: takes the arguments; returns an exit code, None for 0.
        argv: the command's arguments.
    """
    console.forget_remarks()
    cpus.give_threads()
    with termination.listening():
        try:
            code = _outcome(main, argv)
        except console.Closed:
            code = EXIT_CLOSED
        except Exception:
            if not _is_one_of_several():
                raise
            code = EXIT_FAULT
            traceback.print_exc()
        if _is_one_of_several():
            sys.modules[CLUSTER].leave(code, failed=code not in (0, EXIT_PREEMPTED))
    return code


def process(main: Callable[[list[str]], int | None]) -> int:
    """`run` for the command that this process is: with 75 the process ends at once.

    Args:
        main: takes the arguments of the process.
    """
    try:
        code = run(main, sys.argv[1:])
    finally:  # argparse ends `--help` with SystemExit
        console.flush()
    if code == EXIT_PREEMPTED:
        termination.leave()
    return code


def _is_one_of_several() -> bool:
    # Imported by the commands that several processes run together, and by no other.
    cluster = sys.modules.get(CLUSTER)
    return cluster is not None and cluster.has_joined()


def _outcome(main: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    try:
        return main(list(argv)) or 0
    except InputError as error:
        for problem in error.problems:
            console.error(problem)
        return EXIT_INPUT
    except NumericsError as error:
        console.error(str(error))
        return EXIT_NUMERICS
    except Preempted as error:
        console.warn(str(error) or "stopped and saved; repeat the command to continue")
        return EXIT_PREEMPTED
    except termination.Asked as error:
        console.warn(str(error))
        return EXIT_PREEMPTED
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        console.error(
            f"{error.filename or 'a file'}: {error.strerror}; make room or permit "
            "writing there, then repeat the command"
        )
        return EXIT_INPUT
    except KeyboardInterrupt:
        console.error("interrupted")
        return EXIT_INTERRUPTED


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command, whose help ends with where there is more.

    Args:
        name: a key of `COMMANDS`.
        description: what the command does, in whole sentences.
    """
    return argparse.ArgumentParser(
        prog=f"jaxpeft {name}",
        description=description,
        epilog=f"Examples: {PAGES[name]}.",
    )


def begin(text: str, aside: bool = False) -> None:
    """Says what a command sets out to do, before it imports what takes seconds.

    Args:
        text: what it is.
        aside: whether standard output is the results' alone.
    """
    (console.aside if aside else console.say)(f"jaxpeft {__version__}: {text}")


def config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--config FILE` and the positional `overrides` to a command's parser.

    Read them with `parser.parse_intermixed_args`, so that options may stand between the
    overrides.

    Args:
        parser: the command's.
        required: whether the command needs `--config`.
    """
    parser.epilog = f"{parser.epilog or ''} {KEYS}".strip()
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=path,
        required=required,
        help="the YAML file that describes the run",
    )
    parser.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        help="replaces a key of the file, such as training.max_steps=20 or "
        "adapter.target_modules=[q_proj,v_proj]; the value is YAML",
    )


def metric_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names metrics beside those of the configuration."""
    parser.add_argument(
        "--metric",
        metavar="NAME",
        action="append",
        default=[],
        help="a metric that answers are scored by, beside those of evaluation.metrics: "
        "exact_match, rouge_l, ...; or FILE.py:FUNCTION, a function of yours (answer, "
        "reference) -> number, whose file is run; give it several times for several",
    )


def process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that number a process among several, for want of a launcher."""
    group = parser.add_argument_group(
        "several processes",
        "srun, mpirun and Cloud TPU say this themselves; docs/cluster.md has recipes",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 can be reached (or JAX_COORDINATOR_ADDRESS)",
    )
    group.add_argument(
        "--num-processes",
        metavar="N",
        type=int,
        help="how many there are (or JAX_NUM_PROCESSES)",
    )
    group.add_argument(
        "--process-id",
        metavar="I",
        type=int,
        help="which of them this is, from 0 (or JAX_PROCESS_ID)",
    )


def place(args: argparse.Namespace) -> launch.Rank | None:
    """The rank of this process among several; None: it is alone.

    Args:
        args: what a parser with `process_arguments` has read; the environment is asked
            for the rest.
    """
    return launch.place(
        os.environ, args.coordinator, args.num_processes, args.process_id
    )


def usage() -> str:
    """The text of `jaxpeft --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxpeft COMMAND ...",
            "",
            "Parameter-efficient fine-tuning of language models with JAX.",
            "",
            *lines,
            "",
            "`jaxpeft COMMAND --help` explains a command and its options.",
        ]
    )

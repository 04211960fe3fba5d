"""Tasks of EleutherAI's harness with their data, by their names."""

import contextlib
import importlib
import importlib.util
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.errors import InputError, near

OPTION = "--tasks"


@dataclass(frozen=True)
class Choice:
    """Which tasks, and how they are asked.

    Attributes:
        names: of tasks, groups and tags of the harness; `*` stands for anything.
        include_path: a folder with tasks of the user's own, or None.
        num_fewshot: examples before each question; None: as a task says.
        limit: documents of each task, below 1 the share of them; None: all.
        chat: whether questions are turns of a chat, which the model's template writes.
    """

    names: Sequence[str]
    include_path: str | None = None
    num_fewshot: int | None = None
    limit: float | None = None
    chat: bool = False


def installed() -> None:
    """Checks that the harness can be imported.

    Raises:
        InputError: where it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError(
            f"{OPTION}: it needs lm_eval, EleutherAI's harness, which is not "
            "installed: pip install 'jaxpeft[eval]'"
        )


def load(choice: Choice) -> dict[str, Any]:
    """The tasks with their data, as `lm_eval.evaluator.evaluate` takes them.

    Data come from the hub, or from its cache. A file that a task of the user's own
    names as `!function` is run; metrics that are programs on the hub are not.

    Args:
        choice: which.

    Raises:
        InputError: for names that are none, and tasks that cannot be loaded, all at
            once.
    """
    installed()
    defaults = importlib.import_module("lm_eval.defaults")
    random.seed(defaults.DEFAULT_RANDOM_SEED)
    np.random.seed(defaults.DEFAULT_OTHER_SEED)
    manager, names = _named(choice)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    problems = []
    with apart() as refused:
        for name in names:
            refused.clear()
            try:
                one = _loaded(manager, name, refused)
            except InputError as error:
                problems += error.problems
                continue
            problems += _unusable(name, one["tasks"], refused, found["tasks"])
            for part in found:
                found[part] |= one[part]
    if problems:
        raise InputError(*problems)
    for task in found["tasks"].values():
        _give_examples(task, choice.num_fewshot, defaults.DEFAULT_OTHER_SEED)
    return found


def _named(choice: Choice) -> tuple[Any, list[str]]:
    """The manager that knows all names, and the names, `*` resolved."""
    folder = choice.include_path
    if folder is not None and not Path(folder).is_dir():
        raise InputError(
            f"--include_path: {folder!r} is no folder; give one with tasks' YAML files"
        )
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    if folder is not None:  # to list the harness's own thousands takes long
        own = manager(include_path=folder, include_defaults=False)
        if set(choice.names) <= set(own.all_subtasks):
            return own, list(choice.names)
    every = manager(include_path=folder)
    names, problems = [], []
    for name in choice.names:
        matching = every.match_tasks([name])
        names += [one for one in matching if one not in names]
        if not matching:
            problems.append(
                f"{OPTION}: {name!r} is no task of the harness"
                + ("" if folder is None else f", nor in {folder}")
                + (near(name, every.all_tasks) or "; `lm_eval ls tasks` lists them")
            )
    if problems:
        raise InputError(*problems)
    return every, names


def _loaded(manager: Any, name: str, refused: Sequence[str]) -> dict[str, Any]:
    try:
        return manager.load([name])
    except Exception as error:  # whatever the data, or a task's file, raise
        said = refused or [told(error)]
        raise InputError(_cannot(name, said, error)) from error


def _unusable(
    name: str, tasks: Mapping[str, Any], refused: Sequence[str], before: Mapping
) -> list[str]:
    """What is wrong with tasks that were loaded, a sentence each."""
    problems = [_cannot(name, refused)] if refused else []
    for one, task in tasks.items():
        if one in before:
            problems.append(f"{OPTION}: {name}: {one} is there twice; name it once")
        if getattr(task, "UNSAFE_CODE", False):
            problems.append(
                f"{OPTION}: {one} runs programs that the model writes, which is not "
                "done here; leave it out"
            )
        if getattr(task, "MULTIMODAL", False):
            problems.append(f"{OPTION}: {one} is not about text alone; leave it out")
    return problems


def _cannot(name: str, said: Sequence[str], error: Exception | None = None) -> str:
    remedy = "mend it, or leave it out"
    if isinstance(error, OSError):
        remedy = (
            "its data are fetched from the hub and kept: repeat this once where there "
            "is a network and HF_HUB_OFFLINE is not set, or give a task of your own "
            "that reads files, in --include_path"
        )
    return f"{OPTION}: {name} cannot be loaded ({'; '.join(said)}); {remedy}"


def _give_examples(task: Any, count: int | None, seed: int) -> None:
    """Sets how many examples stand before a question, by the harness's own rules."""
    said = task.get_config("num_fewshot")
    if said is None or (count is not None and said != 0):
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=seed)


@contextlib.contextmanager
def apart() -> Iterator[list[str]]:
    """The harness at work: it prints aside, starts no processes, runs no foreign code.

    Returns:
        What it was refused, a sentence each, as it goes on.
    """
    refused: list[str] = []

    def refuse(path: str, *args: Any, **kwargs: Any) -> None:
        refused.append(f"the metric {path!r} is a program of the hub's")
        raise InputError(f"{OPTION}: {refused[-1]}, which is not run; leave it out")

    scripts: Any = importlib.import_module("evaluate")  # Hugging Face's
    kept, alone = scripts.load, os.environ.get("DISABLE_MULTIPROC")
    scripts.load = refuse
    os.environ["DISABLE_MULTIPROC"] = "1"  # a fork beside JAX's threads may hang
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield refused
    finally:
        scripts.load = kept
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = alone


def told(error: Exception) -> str:
    """An exception of somebody else's in a line.

    Args:
        error: the exception.
    """
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__

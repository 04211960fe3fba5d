"""A model of ours asked the tasks of EleutherAI's harness, and what comes of it."""

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.evaluate.loading import Choice, apart, told
from jaxpeft.rundir.files import HARNESS, plain

# What of the harness's report says how the figures came about.
ABOUT = ("groups", "configs", "versions", "n-shot", "higher_is_better", "n-samples")


@dataclass(frozen=True)
class Outcome:
    """What the harness says.

    Attributes:
        report: what a JSON file can hold: `results` and how they came about.
        samples: of each task its documents, with questions, answers and scores.
    """

    report: dict[str, Any]
    samples: dict[str, list[dict[str, Any]]]

    def rows(self) -> list[dict[str, Any]]:
        """The samples as rows of one table, the task named in each."""
        return [
            {"task": task, **row} for task, rows in self.samples.items() for row in rows
        ]


def run(model: Any, loaded: Mapping[str, Any], choice: Choice) -> Outcome:
    """Asks the model everything, and scores its answers.

    Args:
        model: a `HarnessModel`.
        loaded: what `load` gave.
        choice: how the tasks are asked.

    Raises:
        InputError: see `HarnessModel`.
        ScoringError: where a task fails on the answers.
    """
    evaluator = importlib.import_module("lm_eval.evaluator")
    try:
        with apart():
            found = evaluator.evaluate(
                lm=model,
                task_dict=dict(loaded),
                limit=choice.limit,
                log_samples=True,
                apply_chat_template=choice.chat,
                fewshot_as_multiturn=True,
            )
    except InputError:
        raise
    except Exception as error:
        if model.asked:  # a fault of ours, with its traceback
            raise
        raise ScoringError(told(error), _answered(loaded)) from error
    samples = plain(found.pop("samples"))
    about = {name: found[name] for name in ABOUT if name in found}
    version = importlib.import_module("lm_eval").__version__
    report = {"results": found["results"], **about, "lm_eval": version}
    return Outcome(plain(report), samples)


class ScoringError(Exception):
    """A task failed when all answers were there.

    Attributes:
        answers: of each task, what was asked and answered.
    """

    def __init__(self, text: str, answers: dict[str, list[dict[str, Any]]]):
        super().__init__(text)
        self.answers = answers


def new_file(run: str) -> Path:
    """A file in a run's directory for what the harness says, which is not there yet.

    Args:
        run: the run's directory.
    """
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime())
    folder = Path(run) / HARNESS
    names = (f"{stamp}{end}.json" for end in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(folder / name for name in names if not (folder / name).exists())


def lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each figure, with its standard error.

    Args:
        report: see `Outcome`.
    """
    rows = []
    for task, figures in report["results"].items():
        for key, value in figures.items():
            name, _, way = key.partition(",")
            if not way or name.endswith("_stderr"):
                continue
            error = figures.get(f"{name}_stderr,{way}")
            named = name if way == "none" else f"{name} ({way})"
            rows.append((task, named, _number(value), _number(error)))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return [
        f"{task:<{widths[0]}}  {name:<{widths[1]}}  {value}"
        + (f" ± {error}" if error else "")
        for task, name, value, error in rows
    ]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _answered(loaded: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [
            {"doc_id": one.doc_id, "arguments": plain(one.args), "resps": plain(resps)}
            for one in task.instances or []
            if (resps := one.resps)
        ]
        for name, task in loaded["tasks"].items()
    }

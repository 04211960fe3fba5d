"""Evaluations by answers: questions of the evaluation data, asked and scored."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpeft import hf, metrics
from jaxpeft.assembly.base import Base
from jaxpeft.assembly.run import Run
from jaxpeft.config.evaluation import EvaluationSection
from jaxpeft.config.training import EVAL
from jaxpeft.data import EvalBatches
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.generate import choosing
from jaxpeft.generate.generation import generate, padded
from jaxpeft.metrics import Metric
from jaxpeft.rundir.files import finite, write_lines

Told = Callable[[int], None]
MOST_PROBLEMS = 5
KEY = "evaluation.metrics"


def of_run(run: Run, also: Sequence[str] = ()) -> "Scoring | None":
    """The scoring that a run's evaluations do; None where no metric is named.

    Args:
        run: before its first step.
        also: metrics that the command line names, see `metrics.made`.

    Raises:
        InputError: where a metric, or what it needs, cannot be had.
    """
    made = metrics.made(run.cfg.evaluation.metrics, also)
    if not made:
        return None
    if run.evaluation is None:
        raise InputError(f"{metrics.OPTION}: needs evaluation data; set data.eval")
    if run.objective.predictions is not None:
        raise InputError(
            f"{KEY}: found {', '.join(made)} with objective.name "
            f"{run.cfg.objective.name!r}, which gives scores and writes no text; leave "
            "metrics out"
        )
    if run.objective.head is not None:
        raise InputError(
            f"{metrics.OPTION}: found metrics of answers with objective.name "
            f"{run.cfg.objective.name!r}, which gives scores and writes no text; leave "
            "them out: the objective's own figures are always measured"
        )
    size = run.evaluation.batch_size
    return Scoring(run.base, run.evaluation, made, run.cfg.evaluation, size, run.mesh)


class Question(NamedTuple):
    """A question of the evaluation data.

    Attributes:
        number: that of its example.
        prompt: the tokens before its answer.
        reference: the answer that it should have, in words.
    """

    number: int
    prompt: list[int]
    reference: str


@dataclass(frozen=True)
class Scored:
    """The answers to all questions, and what they are worth.

    Attributes:
        figures: {"eval_" and the metric's name: its score}; NaN where it failed.
        rows: what is kept of each question: its example, prompt, reference, answer and
            scores.
        faults: what failed, a sentence each.
    """

    figures: dict[str, float]
    rows: list[dict[str, Any]]
    faults: list[str]

    def write(self, path: Path) -> None:
        """Writes the rows, a JSON object a line.

        Args:
            path: the file, whose folder is made where it is missing.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, self.rows)


class Scoring:
    """The questions that every evaluation asks, and the metrics that score the answers.

    Answers are greedy and batches always of the same shape, so that one program reads
    the prompts and one writes the answers of all evaluations.

    Args:
        base: the opened model.
        data: the evaluation data.
        metrics: {name: metric}, one or more.
        section: which examples, and how long answers may be.
        batch_size: questions that are asked together, unless the section says so.
        mesh: the devices.

    Attributes:
        metrics: the metrics by name.
        questions: the questions.
        stop: the tokens that end an answer.
        left_out: examples that cannot be asked: cut, without an answer, or too long.

    Raises:
        InputError: where no example can be asked, a metric cannot use a reference, a
            user's function fails on one, or the mesh does not divide the batch.
    """

    def __init__(
        self,
        base: Base,
        data: EvalBatches,
        metrics: Mapping[str, Metric],
        section: EvaluationSection,
        batch_size: int,
        mesh: jax.sharding.Mesh,
    ):
        self.metrics, self._base, self._mesh = dict(metrics), base, mesh
        self._max_new_tokens = section.max_new_tokens
        self._batch_size = section.batch_size or batch_size
        sharding.check_batch(self._batch_size, mesh, "evaluation.batch_size")
        self.stop = hf.stop_ids(base.directory, base.tokenizer)
        askable, self.left_out = self._askable(data)
        count = min(len(askable), section.max_examples or len(askable))
        chosen = np.arange(count) * len(askable) // count
        self.questions = [askable[number] for number in chosen]
        self._width = padded(max(len(one.prompt) for one in self.questions))
        self._check()
        self._choices = {
            name: self._possible(metric.choices)
            for name, metric in self.metrics.items()
            if metric.choices is not None
        }

    @property
    def generates(self) -> bool:
        """Whether any metric wants an answer that is generated."""
        return len(self._choices) < len(self.metrics)

    def __len__(self) -> int:
        """The batches that an evaluation takes."""
        asked, size = len(self.questions), self._batch_size
        chosen = (choosing.batches(asked, len(c), size) for c in self._choices.values())
        return self.generates * -(-asked // size) + sum(chosen)

    def summary(self) -> str:
        """What is asked and scored, in a line."""
        text = (
            f"{', '.join(self.metrics)} of the answers to {len(self.questions):,} "
            "evaluation examples"
        )
        if self.left_out:
            text += (
                f" ({self.left_out:,} cannot be asked: cut at data.max_length, without "
                "an answer, or too long for the model with evaluation.max_new_tokens)"
            )
        return text

    def run(
        self,
        params: Mapping[str, Any],
        told: Told = lambda done: None,
        strict: bool = False,
    ) -> Scored:
        """Asks all questions, and scores the answers. Every process takes part.

        Args:
            params: of the whole model, adapters in.
            told: called with the number of batches done, after each; it may raise.
            strict: whether a user's function that fails ends it, in place of a NaN.

        Raises:
            InputError: with `strict`, for a metric that fails on an answer.
        """
        references = [one.reference for one in self.questions]
        answers = self._generated(params, told) if self.generates else None
        figures: dict[str, float] = {}
        rows = self._rows(answers)
        faults: list[str] = []
        for name, metric in self.metrics.items():
            given = answers
            if name in self._choices:
                given = self._chosen(params, self._choices[name], told)
            assert given is not None
            scores = []
            for row, answer, reference in zip(rows, given, references, strict=True):
                if name in self._choices:
                    row["chosen"] = answer
                try:
                    score = metric.each(answer, reference)
                except InputError as error:
                    if strict:
                        raise
                    faults += [f"example {row['example']}: {error}"] * (not faults)
                    score = math.nan
                row["scores"][name] = finite(score)
                scores.append(score)
            figures[EVAL + name] = metric.figure(scores, given, references)
        return Scored(figures, rows, faults)

    def _askable(self, data: EvalBatches) -> tuple[list[Question], int]:
        """The questions that have an answer and room for one, and how many have not."""
        tokenizer, stop = self._base.tokenizer, set(self.stop)
        room = self._base.cfg.context - self._max_new_tokens
        found = []
        for number in data.numbers.tolist():
            prompt, reference = data.examples.question(number)
            if number % data.examples.together:
                continue  # the rejected answer to a question that stands before it
            if data.examples.left_out[number] or len(prompt) < 2:
                continue
            while reference and reference[-1] in stop:
                reference = reference[:-1]
            if not reference or len(prompt) > room:
                continue
            text = tokenizer.decode(reference, skip_special_tokens=True)
            found.append(Question(number, prompt, text))
        if not found:
            raise InputError(
                f"{KEY}: none of the {len(data.numbers)} evaluation examples is a "
                "question whose answer is learned, whole within data.max_length, with "
                f"room for evaluation.max_new_tokens {self._max_new_tokens} more; give "
                "conversations (not format text, nor data.train_on: all), or change "
                "those numbers"
            )
        return found, len(data.numbers) - len(found)

    def _check(self) -> None:
        """Checks that each metric can use the references, before anything is asked."""
        problems = []
        for name, metric in self.metrics.items():
            wrong = [
                f"{KEY}: {name}: evaluation example {one.number}: {text}"
                for one in self.questions
                if (text := metric.wrong(one.reference))
            ]
            problems += wrong[:MOST_PROBLEMS]
            first = self.questions[0].reference
            try:
                metric.each(first, first)
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(*problems)

    def _possible(self, choices: Sequence[str]) -> list[str]:
        """The choices, or all the different references in their order."""
        return list(choices) or sorted({q.reference.strip() for q in self.questions})

    def _rows(self, answers: Sequence[str] | None) -> list[dict[str, Any]]:
        tokenizer = self._base.tokenizer
        rows = []
        for number, one in enumerate(self.questions):
            row: dict[str, Any] = {
                "example": one.number,
                "prompt": tokenizer.decode(one.prompt, skip_special_tokens=True),
                "reference": one.reference,
            }
            if answers is not None:
                row["answer"] = answers[number]
            rows.append({**row, "scores": {}})
        return rows

    def _generated(self, params: Mapping[str, Any], told: Told) -> list[str]:
        size, prompts = self._batch_size, [one.prompt for one in self.questions]
        answers = []
        for number, start in enumerate(range(0, len(prompts), size), 1):
            rows = prompts[start : start + size]
            full = [*rows, *rows[:1] * (size - len(rows))]  # the same program for all
            tokens = generate(
                params,
                self._base.cfg,
                full,
                max_new_tokens=self._max_new_tokens,
                stop=self.stop,
                width=self._width,
                mesh=self._mesh,
            )
            answers += tokens[: len(rows)]
            told(number)
        decode = self._base.tokenizer.decode
        return [decode(tokens, skip_special_tokens=True) for tokens in answers]

    def _chosen(
        self, params: Mapping[str, Any], choices: Sequence[str], told: Told
    ) -> list[str]:
        ids = self._base.tokenizer(list(choices), add_special_tokens=False)["input_ids"]
        best = choosing.most_probable(
            params,
            self._base.cfg,
            [one.prompt for one in self.questions],
            ids,
            batch_size=self._batch_size,
            mesh=self._mesh,
            told=told,
        )
        return [choices[number] for number in best]

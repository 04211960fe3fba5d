"""Answers to the first evaluation examples, to be read beside the references."""

from collections.abc import Sequence
from typing import Any

from jaxpeft import console, hf, tree
from jaxpeft.assembly.run import Run
from jaxpeft.devices import cluster
from jaxpeft.generate.generation import generate
from jaxpeft.rundir import outcome
from jaxpeft.train.hooks import SAVE_GRACE
from jaxpeft.train.program import Program
from jaxpeft.train.watchdog import Watchdog

SAMPLE_TOKENS = 96  # of an answer shown before and after training


def answers(run: Run, trainable: Any) -> list[tuple[str, str, str]]:
    """The answers to the first evaluation examples, beside what they should be.

    Without evaluation data those are the first training examples.

    Args:
        run: the run.
        trainable: its trainable parameters.

    Returns:
        (prompt, reference, answer) for each example that has room for an answer.
    """
    if run.objective.head is not None:  # it writes no text
        return []
    source = run.evaluation or run.batches
    stop = hf.stop_ids(run.base.directory, run.base.tokenizer)
    tokenizer, room = run.base.tokenizer, run.base.cfg.context
    shown = []
    for index in range(min(run.cfg.training.samples, len(source.examples))):
        prompt, reference = source.examples.question(index)
        if len(prompt) < 2 or len(prompt) + SAMPLE_TOKENS > room:
            continue
        answer = generate(
            tree.combine(trainable, run.frozen),
            run.base.cfg,
            [prompt],
            max_new_tokens=SAMPLE_TOKENS,
            stop=stop,
        )[0]
        while reference and reference[-1] in stop:  # an answer ends before it
            reference = reference[:-1]
        texts = (tokenizer.decode(t) for t in (reference, answer))
        prompt_text = tokenizer.decode(prompt, skip_special_tokens=True)
        shown.append((prompt_text, *texts))
    return shown


def before(program: Program, watchdog: Watchdog) -> None:
    """Writes what the untrained models say: of runs with one seed it is the same.

    Args:
        program: before its first step.
        watchdog: is told that answers may take long.
    """
    said: dict[int, list[tuple[str, str, str]]] = {}
    for number, run in enumerate(program.runs):
        if run.cfg.seed not in said:
            watchdog.pet(SAVE_GRACE)
            said[run.cfg.seed] = answers(run, program.trained(number))
        if cluster.is_primary():
            outcome.keep_before(run.output, said[run.cfg.seed])
    if len(program.runs) == 1:
        for prompt, _, answer in said[program.runs[0].cfg.seed]:
            console.say(f"before training\n  prompt: {_short(prompt)}")
            console.say(f"  answer: {_short(answer)}")


def say_after(shown: Sequence[tuple[str, str, str]]) -> None:
    """Says what a trained model answers, beside the references.

    Args:
        shown: what `answers` returns.
    """
    for prompt, reference, answer in shown:
        console.say(f"after training\n  prompt: {_short(prompt)}")
        console.say(f"  answer: {_short(answer)}\n  reference: {_short(reference)}")


def _short(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + " ..."

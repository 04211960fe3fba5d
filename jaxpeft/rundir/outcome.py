"""What came of a run, for people and programs: samples.json and summary.json."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft.rundir.files import (
    METRICS,
    SAMPLES,
    SUMMARY,
    finite,
    read_json,
    write_json,
)
from jaxpeft.rundir.metrics import best_evaluation, read_metrics, values

# What every line of an evaluation of tokens has.
USUAL = {"step", "eval_loss", "eval_perplexity", "eval_accuracy", "eval_tokens"}

Answers = Sequence[tuple[str, str, str]]  # prompt, reference, answer


def keep_before(directory: Path, answers: Answers) -> None:
    """Writes `samples.json` with the answers that the untrained model gave.

    Args:
        directory: the run directory.
        answers: (prompt, reference, answer) of each sample.
    """
    rows = [
        {"prompt": prompt, "reference": reference, "before": answer, "after": None}
        for prompt, reference, answer in answers
    ]
    write_json(directory / SAMPLES, rows)


def keep_after(directory: Path, answers: Answers) -> None:
    """Puts the trained model's answers into `samples.json`, beside those before.

    They are matched by their prompt, so that a run that was resumed, perhaps with
    another number of samples, keeps what was said before its first step; null: nothing
    was.

    Args:
        directory: the run directory.
        answers: (prompt, reference, answer) of each sample.
    """
    earlier = {
        row["prompt"]: row["before"] for row in read_json(directory / SAMPLES) or ()
    }
    rows = [
        {
            "prompt": prompt,
            "reference": reference,
            "before": earlier.get(prompt),
            "after": answer,
        }
        for prompt, reference, answer in answers
    ]
    write_json(directory / SAMPLES, rows)


def keep_summary(
    directory: Path,
    *,
    steps: int,
    seconds: float,
    parameters: int,
    trainable: int,
    stopped_early: bool,
) -> dict[str, Any]:
    """Writes `summary.json` from these and the metrics of the run.

    Tokens per second are those of steps alone. Losses are in nats per token; null where
    there is none.

    Args:
        directory: the run directory.
        steps: the steps taken.
        seconds: what steps, compilation, evaluation and saving took.
        parameters: how many numbers the model has.
        trainable: how many of them train.
        stopped_early: whether the run ended before its last step.

    Returns:
        What stands in the file.
    """
    training, evaluation = read_metrics(directory / METRICS)
    losses = [finite(line["eval_loss"]) for line in evaluation]
    best_step, best = best_evaluation(evaluation) or (None, None)
    memory, memory_of = peak_memory()
    summary = {
        "steps": steps,
        "stopped_early": stopped_early,
        "seconds": round(seconds, 3),
        "tokens": int(training[-1]["tokens"]) if training else 0,
        "tokens_per_second": speed(training),
        "peak_memory_bytes": memory,
        "peak_memory_of": memory_of,
        "parameters": parameters,
        "trainable": trainable,
        "train_loss": finite(training[-1]["loss"]) if training else None,
        "eval_loss_before": losses[0]
        if losses and evaluation[0]["step"] == 0
        else None,
        "eval_loss_after": losses[-1] if losses else None,
        "best_eval_loss": best,
        "best_step": best_step,
    }
    if others := _others(evaluation):
        summary["evaluation"] = others
    write_json(directory / SUMMARY, summary)
    return summary


def _others(evaluation: list[dict]) -> dict[str, dict[str, float | None]]:
    """{figure: its value before training, if there is one, and after} of all others."""
    found = {}
    for name in evaluation[-1] if evaluation else ():
        if name not in USUAL:
            ends = {"before": evaluation[0]} if evaluation[0]["step"] == 0 else {}
            ends["after"] = evaluation[-1]
            found[name.removeprefix("eval_")] = {
                end: finite(line.get(name)) for end, line in ends.items()
            }
    return found


def peak_memory() -> tuple[int, str]:
    """The largest use of memory so far.

    Devices that do not count theirs, such as CPUs, leave the process's resident memory.

    Returns:
        (bytes, whose), the latter "device" or "process".
    """
    import jax  # here, so that readers of what a run left need not load it

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return int(max(peaks)), "device"
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024), "process"


def speed(training: list[dict]) -> float | None:
    """Tokens per second over all logged steps: the tokens over the sum of times.

    Args:
        training: the training lines of the metrics.

    Returns:
        None where no line says how fast it was.
    """
    tokens = np.diff(values(training, "tokens"), prepend=0)
    speeds = values(training, "tokens_per_second")
    known = np.isfinite(tokens) & (speeds > 0)
    if not known.any():
        return None
    found = float(tokens[known].sum() / (tokens / speeds)[known].sum())
    return finite(round(found, 1))

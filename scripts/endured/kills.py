"""Runs killed with SIGKILL at random moments, saves included, and started again."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from endured import runs
from endured.runs import Trial


def follow(output: Path) -> tuple[list[tuple[float, str]], str]:
    """Runs the command to its end.

    Returns:
        ((seconds since the start, line) of all it says, the final state's hash or "").
    """
    begun, lines = time.monotonic(), []
    child = runs.start(output)
    for line in child.stdout or ():
        lines.append((time.monotonic() - begun, line.rstrip()))
    child.wait()
    return lines, runs.digest([line for _, line in lines])


def resumed(lines: list[str]) -> str:
    """The step that a run went on from: the last one where all had been taken."""
    if any(line.startswith("finished") for line in lines):
        return str(runs.STEPS)
    marks = [line.split()[-1] for line in lines if line.startswith("continuing")]
    return marks[0] if marks else "0"


def trials(folder: Path, count: int, seed: int) -> Iterator[Trial]:
    """Kills `count` runs between their first step and their end.

    Each has to continue from its newest sealed step, and to end in the state and with
    the losses of a run that nobody killed, bit for bit.
    """
    straight = folder / "straight"
    follow(folder / "warm")  # compiles: all that follow take the same time
    lines, expected = follow(straight)
    if not expected:
        yield Trial("a run to its end", False, 0.0, "it gave no final state")
        return
    first = next(at for at, line in lines if line.startswith("step  1/"))
    draw = random.Random(seed)
    for number in range(count):
        moment = draw.uniform(first, lines[-1][0])
        output = folder / f"killed-{number}"
        begun = time.monotonic()
        child = runs.start(output)
        time.sleep(moment)
        child.kill()
        child.communicate()
        before = runs.sealed(output)
        said, digest = follow(output)
        at = resumed([line for _, line in said])
        newest = str(before[-1]) if before else "0"
        same = digest == expected and runs.losses(output) == runs.losses(straight)
        told = f"continued from {at}, newest sealed {newest}, state {digest}"
        seconds = time.monotonic() - begun
        yield Trial(
            f"kill -9 after {moment:.1f} s", same and at == newest, seconds, told
        )

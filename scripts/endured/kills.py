"""Runs killed with SIGKILL at random moments, saves included, and started again."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

from endured import runs
from endured.runs import Trial

FIRST = "step  1/"


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


def kill(output: Path, lines: int, pause: float) -> None:
    """Starts the run, and kills it `pause` seconds after so many lines from step 1 on.

    Its own lines say how far it is, however busy the machine.
    """
    child = runs.start(output)
    seen = 0
    for line in child.stdout or ():
        seen += bool(seen) or line.startswith(FIRST)
        if seen == lines:
            break
    time.sleep(pause)
    child.kill()
    child.communicate()


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
    first = next(n for n, (_, line) in enumerate(lines) if line.startswith(FIRST))
    after = lines[first:]
    draw = random.Random(seed)
    for number in range(count):
        # As likely as it is long: a second of the course, then the line before it.
        moment = draw.uniform(after[0][0], after[-1][0])
        at, (since, last) = max(
            (n, line) for n, line in enumerate(after, 1) if line[0] <= moment
        )
        output = folder / f"killed-{number}"
        begun = time.monotonic()
        kill(output, at, moment - since)
        before = runs.sealed(output)
        said, digest = follow(output)
        went_on = resumed([line for _, line in said])
        newest = str(before[-1]) if before else "0"
        same = digest == expected and runs.losses(output) == runs.losses(straight)
        told = f"continued from {went_on}, newest sealed {newest}, state {digest}"
        name = f"kill -9 {moment - since:.2f} s after '{' '.join(last.split()[:2])}'"
        passed = same and went_on == newest
        yield Trial(name, passed, time.monotonic() - begun, told)

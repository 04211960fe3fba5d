"""Failures that a person can act on, and the exit code each one ends a command with."""

import difflib
from collections.abc import Iterable

EXIT_INPUT = 2
EXIT_NUMERICS = 3
EXIT_PREEMPTED = 75
EXIT_STALLED = 124


class InputError(ValueError):
    """A key, a file or a value that the user gave is wrong. Ends a command with 2.

    Each problem is one sentence or two that name the key or file, the value found and
    the remedy; several are reported together, so that one run finds them all.

    Attributes:
        problems: the problems, one text each.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class NumericsError(ArithmeticError):
    """The loss or the gradient is not finite. Ends a command with 3."""


class Preempted(Exception):
    """The run was asked to stop and has saved. Ends a command with 75.

    The same command continues the run.
    """


def suggest(word: str, choices: Iterable[str]) -> str:
    """A tail for an error message: the nearest of `choices`, or all of them.

    >>> suggest("lorra", ["lora", "dora"])
    "; did you mean 'lora'?"

    Args:
        word: what was given.
        choices: what could have been.
    """
    choices = list(choices)
    near = difflib.get_close_matches(str(word), choices, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(c) for c in near) + "?"
    return "; choose from " + ", ".join(choices) if choices else ""

"""Failures that a person can act on, and the exit code each one ends a command with."""

import difflib
from collections.abc import Callable, Iterable

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


def not_utf8(text: str) -> str:
    """What is wrong with a text that came as bytes which are not UTF-8, and the remedy.

    Python keeps such bytes of arguments and of standard input as halves of surrogate
    pairs, of which no tokenizer makes tokens.

    >>> not_utf8("caf\\udce9")
    'found byte 0xe9, which is not UTF-8; send text in the encoding UTF-8'

    Args:
        text: what was given.

    Returns:
        A tail for an error message; "" if nothing is wrong.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"{code:04x}, half of a surrogate pair"
        if 0xDC80 <= code <= 0xDCFF:
            found = f"byte 0x{code - 0xDC00:02x}, which is not UTF-8"
        return f"found {found}; send text in the encoding UTF-8"
    return ""


def suggest(word: str, choices: Iterable[str]) -> str:
    """A tail for an error message: the nearest of `choices`, or all of them.

    >>> suggest("lorra", ["lora", "dora"])
    "; did you mean 'lora'?"

    Args:
        word: what was given.
        choices: what could have been.
    """
    choices = list(choices)
    if tail := near(word, choices):
        return tail
    return "; choose from " + ", ".join(choices) if choices else ""


def near(word: str, choices: Iterable[str], part: Callable[[str], str] = str) -> str:
    """A tail for an error message: the nearest of `choices`; empty if none is near.

    Args:
        word: what was given.
        choices: what could have been.
        part: the part of a choice that the word is compared with.
    """
    choices = list(choices)
    parts = list(dict.fromkeys(map(part, choices)))
    found = difflib.get_close_matches(str(word), parts, n=3, cutoff=0.6)
    names = [repr(choice) for one in found for choice in choices if part(choice) == one]
    return "; did you mean " + " or ".join(names) + "?" if names else ""

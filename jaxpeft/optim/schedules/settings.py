"""What is wrong with a schedule's settings, in words: empty text where nothing is."""

import math
from collections.abc import Collection

from jaxpeft.errors import InputError
from jaxpeft.optim.ranges import problems_of


def check(
    learning_rate: float, total_steps: int, warmup_steps: int, *found: str
) -> None:
    """Refuses common settings that make no sense, and passes on what else is wrong.

    Args:
        learning_rate: the highest rate.
        total_steps: the steps of the run.
        warmup_steps: the steps of the warmup.
        *found: what the functions below say of a schedule's own settings.

    Raises:
        InputError: for all of it at once.
    """
    problems = [
        rate_problem(learning_rate),
        least("total_steps", total_steps, 1),
        least("warmup_steps", warmup_steps, 0) or _too_long(warmup_steps, total_steps),
        *found,
    ]
    refuse(*problems)


def refuse(*problems: str) -> None:
    """Raises InputError for those problems that are not empty, all at once."""
    messages = [problem for problem in problems if problem]
    if messages:
        raise InputError(*messages)


def rate_problem(learning_rate: float) -> str:
    """What is wrong with a learning rate, which must be a finite number, 0 or more."""
    return next(problems_of("learning_rate", learning_rate), "")


def least(key: str, value: float, low: float) -> str:
    """What is wrong with a setting that must be a finite number, `low` or more.

    Args:
        key: its name in the configuration's `schedule` section.
        value: its value.
        low: the lowest value that makes sense.
    """
    fine = math.isfinite(value) and value >= low
    return "" if fine else _message(key, value, f"must be {low} or more")


def positive(key: str, value: float) -> str:
    """What is wrong with a setting that must be a finite number above 0.

    Args:
        key: its name in the configuration's `schedule` section.
        value: its value.
    """
    fine = math.isfinite(value) and value > 0
    return "" if fine else _message(key, value, "must be a number above 0")


def ratio(key: str, value: float) -> str:
    """What is wrong with a setting that must be from 0 to 1.

    Args:
        key: its name in the configuration's `schedule` section.
        value: its value.
    """
    return "" if 0 <= value <= 1 else _message(key, value, "must be from 0 to 1")


def choice(key: str, value: str, choices: Collection[str]) -> str:
    """What is wrong with a setting that must be one of `choices`.

    Args:
        key: its name in the configuration's `schedule` section.
        value: its value.
        choices: the values that make sense.
    """
    if value in choices:
        return ""
    return _message(key, value, "must be " + " or ".join(map(repr, choices)))


def _too_long(warmup_steps: int, total_steps: int) -> str:
    if warmup_steps <= total_steps:
        return ""
    return _message(
        "warmup_steps", warmup_steps, f"the run has only {total_steps} steps"
    )


def _message(key: str, value: object, remedy: str) -> str:
    return f"schedule.{key}: found {value!r}; {remedy}"

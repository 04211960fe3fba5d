"""A metric of the user's own: a function in a file that the command line names."""

import importlib.util
import math
import numbers
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError, suggest
from jaxpeft.metrics.metric import Metric

NAMED = re.compile(r"(.+\.py):(\w+)")
OPTION = "--metric"


def is_own(text: str) -> bool:
    """Whether a text names a function in a Python file, and no metric of ours.

    Args:
        text: such as `scores.py:politeness`.
    """
    return ".py" in text


def load(text: str) -> tuple[str, Metric]:
    """The metric that a function (answer, reference) -> number is.

    The file is run, as Python would import it: only name one that you trust.

    Args:
        text: `FILE.py:FUNCTION`.

    Returns:
        (the function's name, the metric: the mean over the answers).

    Raises:
        InputError: there is no such file or function, or the file cannot be run.
    """
    match = NAMED.fullmatch(text)
    if match is None:
        raise InputError(f"{OPTION}: found {text!r}; write FILE.py:FUNCTION")
    path, name = Path(os.path.expanduser(match[1])), match[2]
    if not path.is_file():
        raise InputError(f"{OPTION}: {str(path)!r} is no file; name a Python file")
    module = vars(_module(path))
    function = module.get(name)
    if not callable(function):
        known = [n for n, x in module.items() if callable(x) and not n.startswith("_")]
        raise InputError(
            f"{OPTION}: {path} has no function {name!r}"
            + (suggest(name, known) or "; define it there")
        )
    return name, Metric(_scored(function, f"{path}:{name}"))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{OPTION}: {path} cannot be run: {_told(error)}; mend the file"
        ) from error
    return module


def _scored(function: Callable[[str, str], Any], name: str) -> Any:
    """The function, whose failures and other results than numbers are InputErrors."""

    def each(answer: str, reference: str) -> float:
        try:
            score = function(answer, reference)
        except Exception as error:
            raise InputError(
                f"{OPTION} {name}: failed on the answer {_short(answer)} with the "
                f"reference {_short(reference)}: {_told(error)}; mend the function"
            ) from error
        known = isinstance(score, numbers.Real)
        if not known or not math.isfinite(float(score)):
            raise InputError(
                f"{OPTION} {name}: gave {_short(score)} for the answer "
                f"{_short(answer)}; it must return a finite number"
            )
        return float(score)

    return each


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _short(value: Any, most: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."

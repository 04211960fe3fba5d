"""Which values make sense for the settings that many optimizers have."""

import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jaxpeft.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

_FRACTION = (lambda x: 0 <= x < 1, "a number from 0 to below 1")
_NOT_NEGATIVE = (lambda x: x >= 0, "a finite number, 0 or more")
_POSITIVE = (lambda x: x > 0, "a finite number above 0")
_COUNT = (lambda x: x >= 1, "a whole number, 1 or more")

_FRACTIONS = (
    *("b1", "b2", "b3", "beta1", "adam_b1", "adam_b2"),
    *("momentum", "alpha_init", "gamma"),
)
_WEIGHTS = (
    *("eps", "adam_eps", "weight_decay", "lr_decay", "initial_accumulator_value"),
    *("alpha", "dampening", "lamb", "grokking_signal_decay_rate", "gradient_clipping"),
    *("adam_learning_rate_factor", "r", "weight_lr_power"),
)
_SIZES = ("clip_threshold", "clip_value", "d0", "d_coef", "max_lr", "scale")
_COUNTS = ("head_dim", "ns_steps", "rank", "t_alpha", "t_beta3", "update_proj_gap")
_RANGES = {
    **dict.fromkeys(_FRACTIONS, _FRACTION),
    **dict.fromkeys(_WEIGHTS, _NOT_NEGATIVE),
    **dict.fromkeys(_SIZES, _POSITIVE),
    **dict.fromkeys(_COUNTS, _COUNT),
}


def in_range(make: Callable[P, T]) -> Callable[P, T]:
    """`make`, but refusing numbers that make no sense, all at once.

    It goes by the names of the parameters. Only Python's own numbers are looked at:
    arrays may be traced, as by `optax.inject_hyperparams`.

    Args:
        make: a function that makes an optimizer, with a parameter `learning_rate`.

    Returns:
        A function of the same signature that raises InputError for such numbers.
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        problems = [
            p for name, x in bound.arguments.items() if (p := _problem(name, x))
        ]
        rate = signature.parameters["learning_rate"]
        problems += rate_problems(bound.arguments["learning_rate"], rate.default)
        if problems:
            raise InputError(*problems)
        return make(*args, **kwargs)

    return checked


def check_pattern(key: str, pattern: str | None) -> None:
    """Refuses what is neither None nor a regular expression.

    Args:
        key: the setting's name in the configuration's `optimizer` section, for the
            message.
        pattern: its value.

    Raises:
        InputError: where `pattern` is no regular expression.
    """
    try:
        re.compile(pattern or "")
    except (re.error, TypeError) as error:
        raise InputError(
            f"optimizer.{key}: found {pattern!r}, which is no regular expression "
            f"({error}); give one that matches whole names, such as '.*embed.*'"
        ) from error


def _problem(name: str, value: Any) -> str:
    if name not in _RANGES:
        return ""
    fits, wanted = _RANGES[name]
    values = value if isinstance(value, tuple | list) else [value]
    numbers = [x for x in values if isinstance(x, int | float)]
    if all(math.isfinite(x) and fits(x) for x in numbers):
        return ""
    return f"optimizer.{name}: found {value!r}; must be {wanted}"


def rate_problems(rate: Any, default: Any = None) -> list[str]:
    """What is wrong with a learning rate; an empty list where nothing is.

    Args:
        rate: the learning rate; a function is not looked into.
        default: the parameter's default; with a default of None the rate may be None.
    """
    if isinstance(rate, int | float):
        if math.isfinite(rate) and rate >= 0:
            return []
        wanted = "a finite number, 0 or more"
    elif (rate is None and default is not None) or isinstance(rate, str):
        wanted = "a number or a schedule, a function of the updates made"
    else:
        return []
    return [f"optimizer.learning_rate: found {rate!r}; must be {wanted}"]

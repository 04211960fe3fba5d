"""Which values make sense for the settings that many optimizers have."""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxpeft.errors import InputError
from jaxpeft.optim import explicit

P = ParamSpec("P")
T = TypeVar("T")

LARGEST = float(np.finfo(np.float32).max)


class Range(NamedTuple):
    """Which numbers a setting may be.

    Attributes:
        fits: whether a finite number is one of them.
        wanted: what they are, in words.
        whole: whether they are whole numbers. By these a program is built, so none of
            them may be an array; any other number may be one, and traced.
    """

    fits: Callable[[Any], bool]
    wanted: str
    whole: bool = False


_FRACTION = Range(lambda x: 0 <= x < 1, "a number from 0 to below 1")
_NOT_NEGATIVE = Range(lambda x: x >= 0, "a finite number, 0 or more")
_POSITIVE = Range(lambda x: x > 0, "a finite number above 0")
_COUNT = Range(lambda x: x >= 1, "a whole number, 1 or more", whole=True)
_RATE = Range(_NOT_NEGATIVE.fits, "a number or a schedule, a function of the updates")

_FRACTIONS = (
    *("b1", "b2", "b3", "beta1", "adam_b1", "adam_b2"),
    *("momentum", "alpha_init", "gamma"),
)
_WEIGHTS = (
    *("eps", "adam_eps", "weight_decay", "lr_decay", "initial_accumulator_value"),
    *("alpha", "dampening", "lamb", "grokking_signal_decay_rate", "gradient_clipping"),
    *("adam_learning_rate_factor", "r", "weight_lr_power"),
)
_SIZES = (
    *("clip_threshold", "clip_value", "d0", "d_coef", "max_lr", "scale", "ratio"),
    *("clip_unmagnified_grad", "skip_unmagnified_rms", "reg"),
)
_COUNTS = (
    *("head_dim", "ns_steps", "rank", "t_alpha", "t_beta3", "update_proj_gap"),
    "min_quantized_size",
)
_RANGES = {
    **dict.fromkeys(_FRACTIONS, _FRACTION),
    **dict.fromkeys(_WEIGHTS, _NOT_NEGATIVE),
    **dict.fromkeys(_SIZES, _POSITIVE),
    **dict.fromkeys(_COUNTS, _COUNT),
    "learning_rate": _RATE,
    "block_size": Range(lambda x: x >= 2, "a whole number, 2 or more", whole=True),
    "decay_rate": Range(
        lambda x: x < 0,
        "below 0, the power of the update's number that new squares are weighted by",
    ),
    "ns_coefficients": Range(lambda x: True, "finite"),
    "seed": Range(lambda x: True, "a whole number", whole=True),
    "warmup_steps": Range(
        lambda x: x >= 0, "a whole number of steps, 0 for none", whole=True
    ),
}


def in_range(
    make: Callable[P, T], also: Callable[[dict[str, Any]], list[str]] | None = None
) -> Callable[P, T]:
    """`make`, but refusing numbers that make no sense, all at once.

    It goes by the names of the parameters. Of what is traced, as by
    `optax.inject_hyperparams`, only the shape is looked at. NumPy's scalars arrive as
    Python's.

    Args:
        make: a function that makes an optimizer, with a parameter `learning_rate`.
        also: from all arguments by name to what else is wrong with them; None: nothing.

    Returns:
        A function of the same signature that raises InputError for such numbers.

    Raises:
        TypeError: for a parameter that is a number and whose range is not known here.
    """
    signature = inspect.signature(make, eval_str=True)
    for name, parameter in signature.parameters.items():
        if name not in _RANGES and _is_number(parameter.annotation):
            raise TypeError(
                f"{make.__name__}: {name} is a number without a range; give it a line "
                "in _RANGES of jaxpeft/optim/ranges.py"
            )

    @functools.wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        problems = [
            problem
            for name, value in given.items()
            for problem in problems_of(name, value, signature.parameters[name].default)
        ]
        if static := {k: x for k, x in given.items() if _must_be_static(k, x)}:
            problems.append(_static_args(static))
        problems += [] if also is None else also(given)
        if problems:
            raise InputError(*problems)
        given.update((name, _plain(value)) for name, value in given.items())
        traced: dict[str, Any] = {
            k: x for k, x in given.items() if isinstance(x, Tracer)
        }
        if not traced:
            return make(*bound.args, **bound.kwargs)
        rest = {k: x for k, x in given.items() if k not in traced}
        own: Any = functools.partial(make, **rest)
        return cast(T, explicit.tuned(own, traced))

    return checked


def problems_of(name: str, value: Any, default: Any = ...) -> Iterator[str]:
    """What is wrong with a setting; nothing comes of names that are not known here.

    Args:
        name: the setting's name in the configuration's `optimizer` section.
        value: its value. A learning rate may be a function, which is not looked into.
        default: its default; where that is None, or a tuple, so may the value be.
    """
    if name not in _RANGES or (value is None and default is None):
        return
    if name == "learning_rate" and callable(value):
        return
    allowed, parts = _RANGES[name], [value]
    if isinstance(default, tuple) and isinstance(value, tuple | list):
        parts = value if len(value) == len(default) else [None]
    if _must_be_static(name, value) or all(_fits(x, allowed) for x in parts):
        return
    number, wanted = _number(value), allowed.wanted
    if number is not None and allowed is _RATE:
        wanted = _NOT_NEGATIVE.wanted
    if isinstance(default, tuple):
        wanted = f"{len(default)} numbers, each {wanted}"
    text = f"optimizer.{name}: found {_shown(value)}; must be {wanted}"
    if number is not None and LARGEST < abs(number) < np.inf:
        text += ", and at most 3.4e38, the most that float32 holds"
    elif number is not None and getattr(value, "dtype", None) in (jnp.bfloat16, "e"):
        text += (
            "; it was rounded to 16 bits: give hyperparam_dtype=jnp.float32 to "
            "optax.inject_hyperparams"
        )
    elif callable(value):
        text += (
            "; for a schedule wrap the optimizer in optax.inject_hyperparams, which "
            "takes one for any number"
        )
    yield text


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


def is_zero(x: Any) -> bool:
    """Whether a setting is Python's 0; of an array it is not known, and may change."""
    return isinstance(x, int | float) and not x


def _is_number(annotation: Any) -> bool:
    """Whether a parameter so annotated may be a number."""
    return annotation in (int, float) or any(
        _is_number(part) for part in typing.get_args(annotation)
    )


def _number(value: Any) -> Any:
    """The number that a setting is, Python's; None where it is none, or is not known.

    Arrays that are held by other processes too are not asked.
    """
    if isinstance(value, jax.Array) and (
        isinstance(value, Tracer) or not value.is_fully_addressable
    ):
        return None
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = value.item() if value.shape == () else None
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return value if known else None


def _fits(value: Any, allowed: Range) -> bool:
    if isinstance(value, jax.Array) and _number(value) is None:
        return value.shape == () and jnp.issubdtype(value.dtype, jnp.number)
    number = _number(value)
    if number is None or (allowed.whole and not isinstance(number, int)):
        return False
    return abs(number) <= LARGEST and allowed.fits(number)


def _must_be_static(name: str, value: Any) -> bool:
    """Whether an array, or the truth of one, stands where a program needs to know."""
    if name == "mask":
        return isinstance(value, bool | jax.Array)
    return name in _RANGES and _RANGES[name].whole and isinstance(value, jax.Array)


def _static_args(given: dict[str, Any]) -> str:
    names = ", ".join(f"optimizer.{name}" for name in given)
    found = ", ".join(_shown(value) for value in given.values())
    quoted = ", ".join(repr(name) for name in given)
    return (
        f"{names}: found {found}; the program is built by it, so it must be a whole "
        "number of Python's, no array, and a mask a tree or a function: to "
        f"optax.inject_hyperparams give static_args=[{quoted}]"
    )


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _shown(value: Any) -> str:
    """A setting in a message: a number as such, whatever array it is in."""
    number = _number(value)
    return repr(value) if number is None else repr(number)

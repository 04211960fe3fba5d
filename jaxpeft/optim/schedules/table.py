"""From the schedule section of a configuration to a learning rate."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optax

from jaxpeft import config
from jaxpeft.config import keys
from jaxpeft.optim import schedules
from jaxpeft.optim.schedules import resolve_warmup
from jaxpeft.optim.schedules.greedy import scale_by_greedy
from jaxpeft.optim.schedules.plateau import scale_by_plateau

__all__ = ["SCHEDULES", "Schedule", "make_scale", "make_schedule", "resolve_warmup"]


@dataclass(frozen=True)
class Schedule:
    """A line of the table: a schedule, and what is special about it.

    Attributes:
        make: returns the rate of each step; what it takes besides the table's `given`
            are its keys in the configuration.
        level: the rate stays where the warmup leaves it.
        scale: where the evaluation loss steers the rate, what multiplies the updates;
            it takes the schedule's keys. None: nothing does.
    """

    make: Callable[..., optax.Schedule]
    level: bool = False
    scale: Callable[..., optax.GradientTransformation] | None = None


def _steered(
    name: str, scale: Callable[..., optax.GradientTransformation], meaning: str
) -> Schedule:
    """The schedule that goes with a scale: constant, with the scale's own settings."""

    def schedule(
        learning_rate: float, total_steps: int, warmup_steps: int = 0, **own: Any
    ) -> optax.Schedule:
        scale(**own, learning_rate=learning_rate)  # refuses what makes no sense
        return schedules.constant(learning_rate, total_steps, warmup_steps)

    # The scale's signature is the schema of its keys, here as there.
    common = inspect.signature(schedules.constant, eval_str=True)
    taken = inspect.signature(scale, eval_str=True).parameters.values()
    keys = [
        p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name not in common.parameters
    ]
    signature = common.replace(parameters=[*common.parameters.values(), *keys])
    vars(schedule).update(__signature__=signature)
    schedule.__name__ = schedule.__qualname__ = name
    schedule.__doc__ = meaning
    return Schedule(schedule, scale=scale)


# The names are transformers'; "step" is torch's StepLR and MultiStepLR.
SCHEDULES = config.Table(
    rows={
        "constant": Schedule(schedules.constant, level=True),
        "linear": Schedule(schedules.linear),
        "cosine": Schedule(schedules.cosine),
        "cosine_with_restarts": Schedule(schedules.cosine_with_restarts),
        "cosine_with_min_lr": Schedule(schedules.cosine_with_min_lr),
        "cosine_warmup_with_min_lr": Schedule(schedules.cosine_warmup_with_min_lr),
        "polynomial": Schedule(schedules.polynomial),
        "inverse_sqrt": Schedule(schedules.inverse_sqrt),
        "warmup_stable_decay": Schedule(schedules.warmup_stable_decay),
        "step": Schedule(schedules.step),
        "reduce_lr_on_plateau": _steered(
            "reduce_lr_on_plateau",
            scale_by_plateau,
            "The rate, after a warmup if there is one, times a factor that falls when "
            "the evaluation loss does not.",
        ),
        "greedy": _steered(
            "greedy",
            scale_by_greedy,
            "The rate, after a warmup if there is one, times a factor that rises while "
            "the evaluation loss falls, and falls when it does not.",
        ),
    },
    aliases={
        "constant_with_warmup": "constant",
        "linear_with_warmup": "linear",
        "warmup_linear": "linear",
        "cosine_with_warmup": "cosine",
        "warmup_cosine": "cosine",
        "cosine_with_hard_restarts": "cosine_with_restarts",
        "polynomial_decay": "polynomial",
        "wsd": "warmup_stable_decay",
        "step_lr": "step",
        "multi_step_lr": "step",
        "reduce_on_plateau": "reduce_lr_on_plateau",
        "plateau": "reduce_lr_on_plateau",
        "greedy_lr": "greedy",
    },
    given={"learning_rate", "total_steps", "warmup_steps"},
    all_say=keys.COURSE,
)


def make_schedule(
    learning_rate: float, schedule: Mapping[str, Any], total_steps: int
) -> optax.Schedule:
    """The schedule that a `schedule` section describes: step (from 0) -> rate.

    Of a schedule that the evaluation loss steers it is the rate without that, see
    `make_scale`.

    Args:
        learning_rate: the highest rate.
        schedule: `name`, `warmup_ratio` or `warmup_steps`, and the schedule's own keys.
        total_steps: the steps of the run.

    Raises:
        InputError: for unknown names and keys and for values that make no sense.
    """
    section = config.parse_section("schedule", schedule, SCHEDULES)
    warmup = resolve_warmup(total_steps, section.warmup_steps, section.warmup_ratio)
    return config.build(
        SCHEDULES,
        section,
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup,
    )


def make_scale(
    schedule: Mapping[str, Any], learning_rate: float
) -> optax.GradientTransformation | None:
    """What comes after the optimizer, where the evaluation loss steers the rate.

    Args:
        schedule: the `schedule` section, see `make_schedule`.
        learning_rate: the highest rate.

    Returns:
        A transformation whose state waits for `plateau.observe`; None for any other
            schedule.

    Raises:
        InputError: for unknown names and keys and for values that make no sense.
    """
    section = config.parse_section("schedule", schedule, SCHEDULES)
    scale = SCHEDULES[section.name].scale
    if scale is None:
        return None
    return scale(**section.options, learning_rate=learning_rate)

"""Optimizers and schedules as ordinary optax transformations."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxpeft import config
from jaxpeft.optim import schedules
from jaxpeft.optim.adamw import adamw

__all__ = ["OPTIMIZERS", "SCHEDULES", "adamw", "make", "make_schedule", "schedules"]

# name -> callable; what it takes besides `given` are its keys in the configuration.
OPTIMIZERS = config.Table(
    entries={"adamw": adamw},
    aliases={
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "paged_adamw": "adamw",
        "paged_adamw_32bit": "adamw",
    },
    given={"learning_rate", "mask"},
)
SCHEDULES = config.Table(
    entries={
        "constant": schedules.constant,
        "linear": schedules.linear,
        "cosine": schedules.cosine,
    },
    aliases={"constant_with_warmup": "constant", "warmup_cosine": "cosine"},
    given={"learning_rate", "total_steps", "warmup_steps"},
)


def make_schedule(
    learning_rate: float, schedule: Mapping[str, Any], total_steps: int
) -> optax.Schedule:
    """The schedule that a `schedule` section describes: step (from 0) -> rate.

    schedule: `name`, `warmup_ratio` or `warmup_steps`, and the schedule's own keys.
    Raises InputError for unknown names and keys.
    """
    section = config.parse_section("schedule", schedule, SCHEDULES)
    warmup = schedules.resolve_warmup(
        total_steps, section.warmup_steps, section.warmup_ratio
    )
    return config.build(
        SCHEDULES,
        section,
        learning_rate=learning_rate,
        total_steps=total_steps,
        warmup_steps=warmup,
    )


def make(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], total_steps: int
) -> optax.GradientTransformation:
    """The optax transformation that a configuration describes.

    optimizer: `name`, `learning_rate`, `max_grad_norm` (clipping by the global norm,
    None: none) and the optimizer's own keywords. schedule: see `make_schedule`.
    Raises InputError for unknown names and keys, all at once for each section.
    """
    section = config.parse_section("optimizer", optimizer, OPTIMIZERS)
    rate = make_schedule(section.learning_rate, schedule, total_steps)
    transformation = config.build(OPTIMIZERS, section, learning_rate=rate)
    if section.max_grad_norm is None:
        return transformation
    return optax.chain(optax.clip_by_global_norm(section.max_grad_norm), transformation)

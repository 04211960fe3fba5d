"""Learning-rate schedules: functions from the completed steps (from 0) to a rate.

They follow transformers' `get_scheduler` step for step, warmup included: the rate
grows from 0, so that with warmup the first update has a rate of 0 (the schedules that
warm up otherwise say so). Past the last step the rate stays where it ended, also where
transformers' own goes on: its cosines rise again.

Every one is `name(learning_rate, total_steps, warmup_steps=0, *, ...)` and returns an
optax schedule, traceable, whose rates are float32. Settings that make no sense raise
InputError, all at once.
"""

from jaxpeft.optim.schedules.cosine import (
    cosine,
    cosine_warmup_with_min_lr,
    cosine_with_min_lr,
    cosine_with_restarts,
)
from jaxpeft.optim.schedules.decay import (
    constant,
    inverse_sqrt,
    linear,
    polynomial,
    step,
)
from jaxpeft.optim.schedules.stable import warmup_stable_decay
from jaxpeft.optim.schedules.warmup import resolve_warmup

__all__ = [
    "constant",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
    "resolve_warmup",
    "step",
    "warmup_stable_decay",
]

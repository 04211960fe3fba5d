"""Schedule-Free optimizers, both sides at y, against schedulefree."""

from typing import Any

import schedulefree

from jaxpeft.optim.schedule_free import (
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from oracles.testbed import Parameters, Row


def training(kind: type, params: Parameters, **settings: Any) -> Any:
    """A reference in the mode in which its parameters are y."""
    optimizer = kind(params.values(), **settings)
    optimizer.train()
    return optimizer


WARM = {"warmup_steps": 20, "weight_decay": 0.01}
WEIGHTED = {"r": 1.0, "weight_lr_power": 1.0}

# At rates of 2.5e-3 AdamW's closed loop leaves itself, by 2e-3 after 1000 steps, for
# some starts that are off by 1e-7.
ROWS = [
    Row(
        "schedule_free_sgd",
        "schedulefree.SGDScheduleFree",
        lambda: schedule_free_sgd(1.0, **WARM),
        lambda p: training(schedulefree.SGDScheduleFree, p, lr=1.0, **WARM),
        bound=5e-5,
    ),
    Row(
        "schedule_free_adamw",
        "schedulefree.AdamWScheduleFree",
        lambda: schedule_free_adamw(1e-3, **WARM),
        lambda p: training(schedulefree.AdamWScheduleFree, p, lr=1e-3, **WARM),
        bound=5e-5,
    ),
    Row(
        "schedule_free_adamw, r",
        "schedulefree.AdamWScheduleFree",
        lambda: schedule_free_adamw(2.5e-3, b1=0.95, **WARM, **WEIGHTED),
        lambda p: training(
            schedulefree.AdamWScheduleFree,
            p,
            lr=2.5e-3,
            betas=(0.95, 0.999),
            **WARM,
            **WEIGHTED,
        ),
        bound=1e-5,
        loop="open",
    ),
    Row(
        "schedule_free_radam",
        "schedulefree.RAdamScheduleFree",
        lambda: schedule_free_radam(2.5e-3, weight_decay=0.01),
        lambda p: training(
            schedulefree.RAdamScheduleFree, p, lr=2.5e-3, weight_decay=0.01
        ),
        bound=5e-5,
    ),
    Row(
        "schedule_free_radam, early SGD",
        "schedulefree.RAdamScheduleFree",
        lambda: schedule_free_radam(2.5e-3, silent_sgd_phase=False),
        lambda p: training(
            schedulefree.RAdamScheduleFree, p, lr=2.5e-3, silent_sgd_phase=False
        ),
        bound=5e-5,
    ),
]

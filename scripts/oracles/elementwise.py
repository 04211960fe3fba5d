"""Optimizers whose entries do not meet each other, against torch and bitsandbytes."""

from typing import Any

import bitsandbytes
import torch

from jaxpeft.optim.adagrad import adagrad
from jaxpeft.optim.adamw import adamw
from jaxpeft.optim.lion import lion
from jaxpeft.optim.lora_plus import lora_plus
from jaxpeft.optim.rmsprop import rmsprop
from jaxpeft.optim.sgd import sgd
from oracles.testbed import Parameters, Row


def their_lion(params: Parameters) -> Any:
    """bitsandbytes' Lion with a state of 32 bits."""
    return bitsandbytes.optim.Lion(
        params.values(), lr=1e-4, weight_decay=0.1, optim_bits=32
    )


def their_lora_plus(params: Parameters) -> torch.optim.AdamW:
    """AdamW with the last kernel at 16 times the rate of the others."""
    fast = [p for name, p in params.items() if name == "layer2.kernel"]
    slow = [p for name, p in params.items() if name != "layer2.kernel"]
    groups = [{"params": slow}, {"params": fast, "lr": 16 * 1e-4}]
    return torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.01)


NESTEROV = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
DAMPED = {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01}
CENTERED = {"momentum": 0.9, "centered": True, "weight_decay": 0.01}
FADING = {"lr_decay": 1e-3, "initial_accumulator_value": 0.1, "weight_decay": 0.01}

ROWS = [
    Row(
        "adamw",
        "torch.optim.AdamW",
        lambda: adamw(1e-3, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p.values(), lr=1e-3, weight_decay=0.01),
        bound=5e-5,
        bound_200=1e-5,
    ),
    Row(
        "lion",
        "bitsandbytes.optim.Lion",
        lambda: lion(1e-4, weight_decay=0.1),
        their_lion,
        # A sign that hangs on a rounding moves its entry by two rates; few do.
        bound=2e-4,
        loop="open",
        measure="rms",
    ),
    Row(
        "lion",
        "bitsandbytes.optim.Lion",
        lambda: lion(1e-4, weight_decay=0.1),
        their_lion,
        bound=1e-2,
        measure="rms",
    ),
    Row(
        "sgd",
        "torch.optim.SGD",
        lambda: sgd(0.1, weight_decay=0.01),
        lambda p: torch.optim.SGD(p.values(), lr=0.1, weight_decay=0.01),
        bound=1e-5,
    ),
    Row(
        "sgd, nesterov",
        "torch.optim.SGD",
        lambda: sgd(0.1, **NESTEROV),
        lambda p: torch.optim.SGD(p.values(), lr=0.1, **NESTEROV),
        bound=1e-5,
    ),
    Row(
        "sgd, dampening",
        "torch.optim.SGD",
        lambda: sgd(0.1, **DAMPED),
        lambda p: torch.optim.SGD(p.values(), lr=0.1, **DAMPED),
        bound=1e-5,
    ),
    Row(
        "rmsprop",
        "torch.optim.RMSprop",
        lambda: rmsprop(1e-3),
        lambda p: torch.optim.RMSprop(p.values(), lr=1e-3),
        bound=1e-5,
        loop="open",
    ),
    # Steps of one size to the end: rounding decides some signs, as with Lion.
    Row(
        "rmsprop",
        "torch.optim.RMSprop",
        lambda: rmsprop(1e-4),
        lambda p: torch.optim.RMSprop(p.values(), lr=1e-4),
        bound=5e-5,
        measure="rms",
    ),
    Row(
        "rmsprop, centered",
        "torch.optim.RMSprop",
        lambda: rmsprop(1e-4, **CENTERED),
        lambda p: torch.optim.RMSprop(p.values(), lr=1e-4, **CENTERED),
        bound=5e-5,
        loop="open",
        measure="rms",  # the variance is a difference of near equals
    ),
    Row(
        "adagrad",
        "torch.optim.Adagrad",
        lambda: adagrad(1e-2),
        lambda p: torch.optim.Adagrad(p.values(), lr=1e-2),
        bound=5e-5,
    ),
    Row(
        "adagrad, lr_decay",
        "torch.optim.Adagrad",
        lambda: adagrad(1e-2, **FADING),
        lambda p: torch.optim.Adagrad(p.values(), lr=1e-2, **FADING),
        bound=5e-5,
    ),
    Row(
        "lora_plus",
        "torch.optim.AdamW in groups",
        lambda: lora_plus(adamw, 1e-4, 16, pattern=r"layer2\.kernel"),
        their_lora_plus,
        bound=5e-5,
    ),
]

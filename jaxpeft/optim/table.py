"""The table of optimizers: a line for each, with what is special about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optax

from jaxpeft import config
from jaxpeft.config import keys
from jaxpeft.optim import from_optax
from jaxpeft.optim.adafactor import adafactor
from jaxpeft.optim.adagrad import adagrad
from jaxpeft.optim.adalomo import adalomo
from jaxpeft.optim.adam_mini import adam_mini
from jaxpeft.optim.adamw import adamw
from jaxpeft.optim.adamw_4bit import adamw_4bit
from jaxpeft.optim.adamw_8bit import adamw_8bit
from jaxpeft.optim.ademamix import ademamix
from jaxpeft.optim.apollo import apollo, apollo_mini
from jaxpeft.optim.came import came
from jaxpeft.optim.galore import galore
from jaxpeft.optim.grokadamw import grokadamw
from jaxpeft.optim.lion import lion
from jaxpeft.optim.lion_8bit import lion_8bit
from jaxpeft.optim.lomo import lomo
from jaxpeft.optim.lora_muon import lora_muon
from jaxpeft.optim.lora_rite import lora_rite
from jaxpeft.optim.muon import muon
from jaxpeft.optim.prodigy import prodigy
from jaxpeft.optim.riemannian_adamw import riemannian_adamw
from jaxpeft.optim.rmsprop import rmsprop
from jaxpeft.optim.schedule_free import (
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from jaxpeft.optim.sgd import sgd
from jaxpeft.optim.stable_adamw import stable_adamw


@dataclass(frozen=True)
class Optimizer:
    """A line of the table: an optimizer, and what is special about it.

    Attributes:
        make: returns the transformation; what it takes besides the table's `given` are
            its keys in the configuration.
        leafwise: it applies a rule to each tensor by itself. Only such a one goes with
            a backward pass that updates as it goes, and with others in one program.
        fused: it is made for such a backward pass, which it has by default where the
            whole model trains.
        averages: it averages its parameters instead of lowering the rate: its schedule
            is constant, and it is the averages that are evaluated and kept.
        finds_rate: its `learning_rate` is a factor on a rate that it finds itself.
        divides_by_rate: it divides by its rate, which may not begin at zero.
        factors: it is made for the two factors of LoRA, and says nothing of others.
        elementwise: what becomes of an element depends on no other of its tensor, and
            one that is 0 and has gradients of 0 stays 0 (with an `eps` above 0).
        steps_of: the name of one that takes the same steps and holds more for it, so
            that their rates are the same.
        linear: its rate goes with the batch size, as SGD's does, and not with the
            square root of it.
        lighter: the name of one to advise where its state takes too much memory.
        defaults: key of the section -> its default with this one.
    """

    make: Callable[..., optax.GradientTransformation]
    leafwise: bool = True
    fused: bool = False
    averages: bool = False
    finds_rate: bool = False
    divides_by_rate: bool = False
    factors: bool = False
    elementwise: bool = False
    steps_of: str | None = None
    linear: bool = False
    lighter: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


def of_optax(name: str) -> Optimizer | str | None:
    """The row of one of optax's own, by a name such as `optax.adamax`.

    Args:
        name: any name.

    Returns:
        The row; why there is none, in words; or None for a name that is not optax's.
    """
    found = from_optax.find(name)
    if not isinstance(found, from_optax.Found):
        return found
    free = found.rate is not None
    defaults = {"learning_rate": found.rate} if free else {}
    return Optimizer(
        found.make,
        leafwise=False,
        finds_rate=free,
        divides_by_rate=found.divides_by_rate,
        defaults=defaults,
    )


# Transformers' names of optimizers whose state lies in the host's memory.
PAGED = ("paged_adamw", "paged_adamw_32bit", "paged_adamw_8bit")
PAGED += ("paged_ademamix_32bit", "paged_lion", "paged_lion_32bit", "paged_lion_8bit")

OPTIMIZERS = config.Table(
    rows={
        "adamw": Optimizer(adamw, elementwise=True, lighter="adamw_8bit"),
        "adafactor": Optimizer(adafactor),
        "adagrad": Optimizer(adagrad, elementwise=True),
        "adalomo": Optimizer(adalomo, fused=True),
        "adam_mini": Optimizer(adam_mini),
        "adamw_4bit": Optimizer(adamw_4bit, steps_of="adamw"),
        "adamw_8bit": Optimizer(adamw_8bit, steps_of="adamw"),
        "ademamix": Optimizer(ademamix, elementwise=True),
        "apollo": Optimizer(apollo),
        "apollo_mini": Optimizer(apollo_mini),
        "came": Optimizer(came),
        "galore": Optimizer(galore),
        "grokadamw": Optimizer(grokadamw),
        "lion": Optimizer(lion, elementwise=True),
        "lion_8bit": Optimizer(lion_8bit, steps_of="lion"),
        "lomo": Optimizer(lomo, linear=True, fused=True, elementwise=True),
        "lora_muon": Optimizer(lora_muon, factors=True),
        "lora_rite": Optimizer(lora_rite, factors=True),
        "muon": Optimizer(muon),
        "prodigy": Optimizer(
            prodigy, finds_rate=True, leafwise=False, defaults={"learning_rate": 1.0}
        ),
        "riemannian_adamw": Optimizer(riemannian_adamw, factors=True),
        "rmsprop": Optimizer(rmsprop, elementwise=True),
        "schedule_free_adamw": Optimizer(
            schedule_free_adamw, averages=True, elementwise=True
        ),
        "schedule_free_radam": Optimizer(
            schedule_free_radam, averages=True, elementwise=True
        ),
        "schedule_free_sgd": Optimizer(
            schedule_free_sgd, linear=True, averages=True, elementwise=True
        ),
        "sgd": Optimizer(sgd, linear=True, elementwise=True),
        "stable_adamw": Optimizer(stable_adamw),
    },
    aliases={
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_8bit": "adamw_8bit",
        "adamw_torch_8bit": "adamw_8bit",
        "adamw_torch_4bit": "adamw_4bit",
        "paged_lion_8bit": "lion_8bit",
        "lion_bnb_8bit": "lion_8bit",
        "apollo_adamw": "apollo",
        "galore_adamw": "galore",
        "paged_adamw": "adamw",
        "paged_adamw_32bit": "adamw",
        "lion_32bit": "lion",
        "paged_ademamix_32bit": "ademamix",
        "paged_lion": "lion",
        "paged_lion_32bit": "lion",
        "schedule_free_radamw": "schedule_free_radam",
        "dadapt_adamw": "optax.contrib.dadapt_adamw",
        "dog": "optax.contrib.dog",
        "dowg": "optax.contrib.dowg",
        "mechanic": "optax.contrib.mechanize",
        "momo": "optax.contrib.momo",
        "momo_adam": "optax.contrib.momo_adam",
    },
    implied={name: {"offload": True} for name in PAGED},
    given={"learning_rate", "mask", "layout", "stacked", "warmup_steps"},
    all_say=keys.ALWAYS,
    some_say={"weight_decay": keys.NUMBER},
    others=of_optax,
)

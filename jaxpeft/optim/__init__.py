"""Optimizers and schedules as ordinary optax transformations."""

from jaxpeft.optim import schedules
from jaxpeft.optim.adafactor import adafactor
from jaxpeft.optim.adagrad import adagrad
from jaxpeft.optim.adalomo import adalomo
from jaxpeft.optim.adam_mini import adam_mini
from jaxpeft.optim.adamw import adamw
from jaxpeft.optim.adamw_4bit import adamw_4bit
from jaxpeft.optim.adamw_8bit import adamw_8bit
from jaxpeft.optim.ademamix import ademamix
from jaxpeft.optim.apollo import apollo, apollo_mini
from jaxpeft.optim.batch_scaling import BATCH_SCALING, scaled_rate
from jaxpeft.optim.came import came
from jaxpeft.optim.galore import galore
from jaxpeft.optim.grokadamw import grokadamw
from jaxpeft.optim.layout import Group, Layout
from jaxpeft.optim.lion import lion
from jaxpeft.optim.lion_8bit import lion_8bit
from jaxpeft.optim.lomo import lomo
from jaxpeft.optim.lora_muon import lora_muon
from jaxpeft.optim.lora_plus import lora_plus
from jaxpeft.optim.lora_rite import lora_rite
from jaxpeft.optim.make import Parts, leafwise, make, make_parts
from jaxpeft.optim.muon import muon
from jaxpeft.optim.prodigy import prodigy
from jaxpeft.optim.quantize_state import quantize_state
from jaxpeft.optim.riemannian_adamw import riemannian_adamw
from jaxpeft.optim.rmsprop import rmsprop
from jaxpeft.optim.rule import Rule, transformation
from jaxpeft.optim.schedule_free import (
    evaluation_params,
    schedule_free_adamw,
    schedule_free_radam,
    schedule_free_sgd,
)
from jaxpeft.optim.schedules.greedy import scale_by_greedy
from jaxpeft.optim.schedules.plateau import (
    observe,
    observes,
    rate_factor,
    scale_by_plateau,
)
from jaxpeft.optim.schedules.table import SCHEDULES, Schedule, make_schedule
from jaxpeft.optim.sgd import sgd
from jaxpeft.optim.stable_adamw import stable_adamw
from jaxpeft.optim.table import OPTIMIZERS, Optimizer

__all__ = [
    "BATCH_SCALING",
    "OPTIMIZERS",
    "SCHEDULES",
    "Group",
    "Layout",
    "Optimizer",
    "Parts",
    "Rule",
    "Schedule",
    "adafactor",
    "adagrad",
    "adalomo",
    "adam_mini",
    "adamw",
    "adamw_4bit",
    "adamw_8bit",
    "ademamix",
    "apollo",
    "apollo_mini",
    "came",
    "evaluation_params",
    "galore",
    "grokadamw",
    "leafwise",
    "lion",
    "lion_8bit",
    "lomo",
    "lora_muon",
    "lora_plus",
    "lora_rite",
    "make",
    "make_parts",
    "make_schedule",
    "muon",
    "observe",
    "observes",
    "prodigy",
    "quantize_state",
    "rate_factor",
    "riemannian_adamw",
    "rmsprop",
    "scale_by_greedy",
    "scale_by_plateau",
    "scaled_rate",
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "schedules",
    "sgd",
    "stable_adamw",
    "transformation",
]

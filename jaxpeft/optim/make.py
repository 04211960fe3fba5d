"""From the sections of a configuration to an optax transformation."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxpeft import config, tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adafactor import relative_rate
from jaxpeft.optim.layout import Group, Layout
from jaxpeft.optim.quantize_state import quantize_state
from jaxpeft.optim.rule import Leafwise, RuleTransformation
from jaxpeft.optim.schedules.table import (
    SCHEDULES,
    make_scale,
    make_schedule,
    resolve_warmup,
)
from jaxpeft.optim.table import OPTIMIZERS

# Every leaf of a model's layers stacks them along its first axis.
STACKED = r"(.*\.)?layers\..*"
# Biases and the scales of norms, by the last part of their names.
# A copy of one that trains beside an adapter has a field of its own.
UNDECAYED = re.compile(r"(.*\.)?(bias|scale)(\.weight)?")
LORA_B = r"(.*\.)?b"


class Parts(NamedTuple):
    """What a configuration says of the optimizer.

    Attributes:
        optimizer: the transformation, without clipping.
        max_grad_norm: the global norm that gradients are clipped to; None for no
            clipping.
        scale: what an evaluation loss steers, if anything does.
        rate: the learning rate of each step.
    """

    optimizer: optax.GradientTransformation
    max_grad_norm: float | None
    scale: optax.GradientTransformation | None
    rate: optax.Schedule

    @property
    def leafwise(self) -> Leafwise | None:
        """The rule that the optimizer applies to each tensor; None if it has none."""
        tx = self.optimizer
        return tx.leafwise if isinstance(tx, RuleTransformation) else None

    def chain(self) -> optax.GradientTransformationExtraArgs:
        """Clipping, optimizer and scale in one transformation."""
        chain = [self.optimizer]
        if self.max_grad_norm is not None:
            chain.insert(0, optax.clip_by_global_norm(self.max_grad_norm))
        if self.scale is not None:
            chain.append(self.scale)
        tx = optax.chain(*chain) if len(chain) > 1 else self.optimizer
        return optax.with_extra_args_support(tx)


def make(
    optimizer: Mapping[str, Any], schedule: Mapping[str, Any], total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation that a configuration describes.

    Leaves with "layers" in their names are taken to stack the layers of a model.

    Args:
        optimizer: `name`, `learning_rate`, `max_grad_norm` (clipping by the global
            norm, None: none), `groups`, `lora_plus_ratio`, `decay_all`,
            `quantize_state` and the optimizer's own keywords.
        schedule: the `schedule` section, see `make_schedule`.
        total_steps: the steps of the run.

    Raises:
        InputError: for unknown names and keys, all at once for each section, and for an
            optimizer and a schedule that do not go together.
    """
    return make_parts(optimizer, schedule, total_steps).chain()


def make_parts(
    optimizer: Mapping[str, Any],
    schedule: Mapping[str, Any],
    total_steps: int,
    rate: optax.Schedule | None = None,
) -> Parts:
    """The parts that `make` puts together.

    Args:
        optimizer: the `optimizer` section, see `make`.
        schedule: the `schedule` section, see `make_schedule`.
        total_steps: the steps of the run.
        rate: step (from 0) -> learning rate, in place of what `learning_rate` and
            `schedule` say: no warmup, and nothing that an evaluation steers.

    Raises:
        InputError: as in `make`; with `rate` also for an optimizer that finds or sets
            its rate by itself.
    """
    section = config.parse_section("optimizer", optimizer, OPTIMIZERS)
    given: dict[str, Any] = {"learning_rate": rate}
    scale = None
    if rate is None:
        given, rate = _scheduled(section, schedule, total_steps)
        scale = make_scale(schedule, section.learning_rate)
    else:
        _check_takes_a_rate(section)
    takes, groups = OPTIMIZERS.parameters(section.name), _groups(section)
    if "layout" in takes:
        given["layout"] = Layout(STACKED, groups)
    elif groups:
        raise InputError(
            f"{groups[0].key}: {section.name!r} has one rate for all parameters; "
            "remove it, or choose another optimizer"
        )
    if "stacked" in takes:
        given["stacked"] = STACKED
    if "mask" in takes and not section.decay_all:
        given["mask"] = decayed
    tx = config.build(OPTIMIZERS, section, **given)
    if section.quantize_state:
        tx = _in_8_bits(tx, section.name, takes)
    return Parts(tx, section.max_grad_norm, scale, rate)


def _in_8_bits(tx: Any, name: str, takes: Collection[str]) -> Any:
    if "block_size" in takes:
        raise InputError(
            f"optimizer.quantize_state: found true; {name!r} keeps its state in few "
            "bits already: remove it"
        )
    return quantize_state(tx)


def _scheduled(
    section: Any, schedule: Mapping[str, Any], total_steps: int
) -> tuple[dict[str, Any], optax.Schedule]:
    """What of the rate the optimizer is given, and the learning rate of each step."""
    if section.is_auto:
        raise InputError(
            "optimizer.learning_rate: found 'auto', which only training itself "
            "resolves; give a number, such as the one that `jaxpeft lr_find` suggests"
        )
    rate = make_schedule(section.learning_rate, schedule, total_steps)
    given: dict[str, Any] = {"learning_rate": rate}
    if OPTIMIZERS[section.name].averages:
        warmup = _own_warmup(section.name, schedule, total_steps)
        given["learning_rate"] = section.learning_rate
        if "warmup_steps" in OPTIMIZERS.parameters(section.name):
            given["warmup_steps"] = warmup
            rate = _warmed_up(section.learning_rate, warmup)
        elif warmup:
            raise InputError(
                f"schedule.warmup_steps: found {warmup}; {section.name!r} warms up by "
                "itself: leave warmup_steps and warmup_ratio out"
            )
    if section.options.get("relative_step"):
        rate = _relative(section, schedule)
        given["learning_rate"] = None
    if OPTIMIZERS[section.name].divides_by_rate:
        _check_begins_above_zero(section.name, rate)
    return given, rate


def leafwise(parts: Parts, name: str) -> Leafwise:
    """The rule of an optimizer, for a backward pass that updates as it goes.

    Args:
        parts: what `make_parts` returns.
        name: what the optimizer is called, for the message.

    Raises:
        InputError: where the optimizer needs all gradients at once, and where the
            schedule needs the whole update.
    """
    if parts.leafwise is None or parts.leafwise.rule.pair is not None:
        raise InputError(
            f"optimizer.name: found {name!r}; it takes all gradients at once, and "
            "training.fused_backward never has them; set fused_backward: false"
        )
    if parts.scale is not None:
        raise InputError(
            "schedule.name: a rate that the evaluation loss steers cannot go with "
            "training.fused_backward; choose another schedule, or fused_backward: false"
        )
    return parts.leafwise


def decayed(params: Any) -> Any:
    """A tree of booleans: true where weight decay applies, so not to biases and norms.

    The choice is that of transformers' Trainer.

    Args:
        params: the tree of parameters.
    """
    names = [name for name, _ in tree.named_weights(params)]
    decays = [not UNDECAYED.fullmatch(name) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), decays)


def _check_begins_above_zero(name: str, rate: optax.Schedule) -> None:
    first = rate(0)
    if not isinstance(first, Tracer) and first == 0:
        raise InputError(
            f"optimizer.name: found {name!r}, which divides by its rate, and the "
            "schedule begins at zero; leave warmup_steps and warmup_ratio out, or use "
            "prodigy"
        )


def _check_takes_a_rate(section: Any) -> None:
    """Raises InputError where no learning rate could be looked for."""
    if OPTIMIZERS[section.name].finds_rate:
        raise InputError(
            f"optimizer.name: found {section.name!r}; it finds its rate by itself, and "
            "there is none to look for: leave learning_rate at 1.0, or choose another "
            "optimizer"
        )
    if section.options.get("relative_step"):
        raise InputError(
            "optimizer.relative_step: found true; the rate then follows from the step "
            "alone, and there is none to look for: set it to false"
        )


def _groups(section: Any) -> tuple[Group, ...]:
    groups = [
        Group(g.pattern, g.learning_rate_factor, g.weight_decay) for g in section.groups
    ]
    if section.lora_plus_ratio is not None:
        key = "optimizer.lora_plus_ratio"
        groups.append(Group(LORA_B, section.lora_plus_ratio, key=key))
    return tuple(groups)


def _own_warmup(name: str, schedule: Mapping[str, Any], total_steps: int) -> int:
    """The warmup steps of an optimizer that averages instead of decaying its rate."""
    section = config.parse_section("schedule", schedule, SCHEDULES)
    if not SCHEDULES[section.name].level:
        raise InputError(
            f"schedule.name: found {section.name!r}; {name!r} averages its parameters "
            "instead of lowering the rate: use {name: constant}, with warmup_steps or "
            "warmup_ratio as you like"
        )
    return resolve_warmup(total_steps, section.warmup_steps, section.warmup_ratio)


def _relative(section: Any, schedule: Mapping[str, Any]) -> optax.Schedule:
    """The rate that Adafactor chooses by itself."""
    course = config.parse_section("schedule", schedule, SCHEDULES)
    level = SCHEDULES[course.name].level
    if not level or course.warmup_steps or course.warmup_ratio:
        raise InputError(
            "optimizer.relative_step: found true; the rate then follows from the step "
            "alone: use it with schedule {name: constant} without a warmup; "
            "learning_rate has no effect"
        )
    return relative_rate(bool(section.options.get("warmup_init")))


def _warmed_up(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    def rate(count: Any) -> jax.Array:
        return learning_rate * jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))

    return rate

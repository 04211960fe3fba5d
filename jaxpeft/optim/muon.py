"""Muon: steps along the momentum of a matrix, made orthogonal (Jordan et al., 2024)."""

import re
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.adamw import AdamState, adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import check_pattern, in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)

ADAM_NAMES = r"(.*\.)?(embed\w*|lm_head)(\..*)?"
# So small a sum in the divisor only keeps a matrix of zeros from giving nan.
_EPS = 1e-20


class MuonState(NamedTuple):
    """State of one matrix, float32.

    Attributes:
        mu: its momentum.
    """

    mu: Array


def muon_rule(
    momentum: float,
    nesterov: bool,
    ns_coefficients: tuple[float, float, float],
    ns_steps: int,
    adjust_lr_fn: Literal["original", "match_rms_adamw"],
    adam: Rule,
    adam_factor: float,
    adam_names: str,
) -> Rule:
    """The rule of `muon`, which explains the arguments not listed here.

    Args:
        adam: the rule of the tensors that Muon leaves out.
        adam_factor: their learning rate over everybody's.
        adam_names: a regular expression for the whole dotted names of matrices left
            out.
    """
    # Without momentum of its own this is nothing but the iteration.
    newton_schulz = optax.contrib.scale_by_muon(
        ns_coefficients, ns_steps, beta=0.0, eps=_EPS, nesterov=False
    )

    def init(p: Array, place: Place) -> MuonState | AdamState:
        if p.ndim != 2 or re.fullmatch(adam_names, place.name):
            return adam.init(p, place)
        return MuonState(jnp.zeros_like(p))

    def update(g: Array, state: Any, p: Array, ctx: Context) -> tuple[Array, Any]:
        if isinstance(state, AdamState):
            ctx = ctx._replace(learning_rate=ctx.learning_rate * adam_factor)
            return adam.update(g, state, p, ctx)
        mu = state.mu + (1 - momentum) * (g - state.mu)
        mixed = g + momentum * (mu - g) if nesterov else mu
        u: Any = newton_schulz.update(mixed, newton_schulz.init(p))[0]
        rate = ctx.learning_rate * _adjustment(p.shape, adjust_lr_fn)
        return ctx.decayed(p) - rate * u, MuonState(mu)

    return Rule(init, update)


def _adjustment(shape: tuple[int, ...], adjust_lr_fn: str) -> float:
    d_in, d_out = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * max(d_in, d_out) ** 0.5
    return max(1.0, d_out / d_in) ** 0.5


@in_range
def muon(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "original",
    adam_names: str | None = None,
    adam_learning_rate_factor: float = 1.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps: float = 1e-8,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Steps along an almost orthogonal matrix near the momentum; AdamW for the rest.

        B <- B + (1 - momentum) (g - B),  x = g + momentum (B - g) with nesterov, else B
        O = ns_steps times X <- a X + (b X X^T + c (X X^T)**2) X, from X = x / |x|
        p <- p (1 - rate * weight_decay)
        p <- p - rate r O,  r = sqrt(max(1, out / in)), or with "match_rms_adamw"
                            0.2 sqrt(max(in, out)), so that AdamW's rates suit it

    Kernels are (in, out). AdamW has every tensor that is no matrix and those that
    `adam_names` matches. State: B in float32, 4 bytes a parameter; of AdamW 8.

    The reference is torch.optim.Muon, which has the same defaults but iterates in
    bfloat16, where here it is float32 by `optax.contrib`. That alone moves a course by
    parts in a thousand. torch divides by max(|x|, 1e-7); here the norm has no floor.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        weight_decay: the factor of the decay in the formulas; 0: none.
        momentum: the decay of B, from 0 to below 1.
        nesterov: whether the step looks ahead along B.
        ns_coefficients: a, b and c of the iteration.
        ns_steps: the rounds of the iteration, 1 or more.
        adjust_lr_fn: which r multiplies the rate.
        adam_names: a regular expression; AdamW has the tensors whose whole dotted names
            it matches. None: embeddings and the head.
        adam_learning_rate_factor: AdamW's rate over the common one, 0 or more.
        adam_b1: AdamW's b1, from 0 to below 1.
        adam_b2: AdamW's b2, from 0 to below 1.
        adam_eps: AdamW's eps, 0 or more.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once, and at `init` for
            `adam_names` that match no tensor.
    """
    if adam_names is not None:
        check_pattern("adam_names", adam_names)
    rule = muon_rule(
        momentum,
        nesterov,
        ns_coefficients,
        ns_steps,
        adjust_lr_fn,
        adamw_rule(adam_b1, adam_b2, adam_eps),
        adam_learning_rate_factor,
        adam_names or ADAM_NAMES,
    )

    def problems(shapes: dict[str, tuple[int, ...]]) -> list[str]:
        if adam_names is None or any(re.fullmatch(adam_names, name) for name in shapes):
            return []
        return [
            f"optimizer.adam_names: no parameter that trains has a name that matches "
            f"{adam_names!r}; the names are such as {', '.join(list(shapes)[:3])}"
        ]

    return transformation(
        rule,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
        problems=problems,
    )

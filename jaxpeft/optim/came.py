"""CAME: confidence-guided updates in little memory (Luo et al., 2023)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim import factored
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    transformation,
)


class CameState(NamedTuple):
    """Moments of one tensor, float32.

    Attributes:
        mu: the moving average of the updates, in full.
        nu: the moving average of the squares of gradients.
        instability: the moving average of the squares of an update's distance from mu;
            None for a tensor of fewer than two axes.
    """

    mu: Array
    nu: factored.Moment
    instability: factored.Moment | None


def came_rule(
    eps: tuple[float, float], clip_threshold: float, b1: float, b2: float, b3: float
) -> Rule:
    """The rule of `came`, which explains the arguments."""

    def init(p: Array, place: Place) -> CameState:
        instability = None if p.ndim < 2 else factored.zeros(p)
        return CameState(jnp.zeros_like(p), factored.zeros(p), instability)

    def update(
        g: Array, state: CameState, p: Array, ctx: Context
    ) -> tuple[Array, CameState]:
        nu = factored.averaged(state.nu, jnp.square(g) + eps[0], 1 - b2)
        u = factored.clipped(g * factored.inverse_root(nu), clip_threshold)
        mu = b1 * state.mu + (1 - b1) * u
        direction, instability = mu, state.instability
        if instability is not None:
            residual = jnp.square(u - mu) + eps[1]
            instability = factored.averaged(instability, residual, 1 - b3)
            direction = mu * factored.inverse_root(instability)
        kept = p if not ctx.decays else p + (-ctx.rate_times_decay) * p
        new = kept - ctx.learning_rate * direction
        return new, CameState(mu, nu, instability)

    return Rule(init, update)


@in_range
def came(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Adafactor's updates, averaged, and smaller where they disagree with the average.

        R <- b2 R + (1 - b2) rowmeans(g**2 + eps[0]),  C likewise of the columns
        u = g / sqrt(R C / mean(R));  u <- u / max(1, rms(u) / clip_threshold)
        m <- b1 m + (1 - b1) u
        S <- b3 S + (1 - b3) rowmeans((u - m)**2 + eps[1]),  T likewise of the columns
        p <- p - rate * weight_decay * p
        p <- p - rate * m / sqrt(S T / mean(S));  a tensor of one axis: - rate * m

    There is no correction of the moments' start. State: m in float32, 4 bytes a
    parameter, and 8 bytes for each row and column; a tensor of one axis has a second
    moment of full size. Tensors of more than two axes are treated as in `adafactor`.
    Equal to came_pytorch's `CAME`, whose three betas are b1, b2 and b3.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of R and C, from 0 to below 1.
        b3: the decay of S and T, from 0 to below 1.
        eps: what is added to the squares of the gradients, and to those of the
            distances u - m.
        clip_threshold: the root mean square above which an update is scaled down, above
            0.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    return transformation(
        came_rule(eps, clip_threshold, b1, b2, b3),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

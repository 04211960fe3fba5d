"""AdEMAMix: AdamW with a second, much slower momentum (Pagliardini et al., 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import in_range, is_zero
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    debias,
    transformation,
)


class AdemamixState(NamedTuple):
    """State of one tensor, float32 and shaped like it.

    Attributes:
        mu: the fast moving average of the gradients, m.
        slow: the slow moving average of the gradients, s.
        nu: the moving average of their squares, v.
    """

    mu: Array
    slow: Array
    nu: Array


def ademamix_rule(
    b1: float,
    b2: float,
    b3: float,
    alpha: float,
    t_alpha: int | None,
    t_beta3: int | None,
    eps: float,
) -> Rule:
    """The rule of `ademamix`, which explains the arguments."""

    def init(p: Array, place: Place) -> AdemamixState:
        return AdemamixState(jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros_like(p))

    def update(
        g: Array, state: AdemamixState, p: Array, ctx: Context
    ) -> tuple[Array, AdemamixState]:
        t = ctx.t.astype(jnp.float32)
        own_alpha = alpha * jnp.minimum(1.0, t / t_alpha) if t_alpha else alpha
        log_b3 = _log_b3(b1, b3, t / t_beta3) if t_beta3 else _log(b3)
        mu = b1 * state.mu + (1 - b1) * g
        # Near 1, b3 itself has lost the digits that 1 - b3 needs.
        slow = jnp.exp(log_b3) * state.slow - jnp.expm1(log_b3) * g
        nu = b2 * state.nu + (1 - b2) * jnp.square(g)
        root = jnp.sqrt(nu) / jnp.sqrt(debias(b2, ctx.t)) + eps
        u = (mu / debias(b1, ctx.t) + own_alpha * slow) / root
        return ctx.decayed(p) - ctx.learning_rate * u, AdemamixState(mu, slow, nu)

    return Rule(init, update)


def _log_b3(b1: float, b3: float, x: Array) -> Array:
    """ln of b3 when a part x of its warmup is over: half-lives grow linearly."""
    low, high = _log(b1), _log(b3)
    x = jnp.minimum(x, 1.0)
    return low * high / ((1 - x) * high + x * low)


def _log(beta: float | Array) -> Any:
    return jnp.log(beta) if isinstance(beta, jax.Array) else np.log(beta)


@in_range
def ademamix(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    b3: float = 0.9999,
    alpha: float = 5.0,
    t_alpha: int | None = None,
    t_beta3: int | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """AdamW whose momentum is joined by a moving average of tens of thousands of steps.

        m <- b1 m + (1 - b1) g,  s <- b_t s + (1 - b_t) g,  v <- b2 v + (1 - b2) g**2
        p <- p (1 - rate * weight_decay)
        p <- p - rate (m / (1 - b1**t) + a_t s) / (sqrt(v) / sqrt(1 - b2**t) + eps)

    a_t rises to alpha over `t_alpha` steps, linearly, and b_t from b1 to b3 over
    `t_beta3`, as ln b_t = ln b1 ln b3 / ((1 - x) ln b3 + x ln b1) at x = t / t_beta3.

    State: m, s and v in float32, 12 bytes a parameter. Equal to bitsandbytes' AdEMAMix
    with 32-bit state, whose defaults these are; `optax.contrib.ademamix` is the same
    without the decay of this form, but a b3 that warms up loses the digits of 1 - b3
    there.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, above 0 and below 1.
        b2: the decay of v, from 0 to below 1.
        b3: the decay of s, above 0 and below 1.
        alpha: the weight of s in the step, 0 or more.
        t_alpha: the steps over which the weight rises, 1 or more; None: it has its full
            value from the start.
        t_beta3: the steps over which the decay of s rises, 1 or more; None: it has its
            full value from the start.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once, among them b1 or b3
            outside of (0, 1) and warmups below 1.
    """
    problems = [
        f"optimizer.{key}: found {value}; use a number between 0 and 1"
        for key, value in {"b1": b1, "b3": b3}.items()
        if is_zero(value)
    ]
    if problems:
        raise InputError(*problems)
    return transformation(
        ademamix_rule(b1, b2, b3, alpha, t_alpha, t_beta3, eps),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

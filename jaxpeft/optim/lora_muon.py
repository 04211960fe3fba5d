"""LoRA-Muon: steps of a fixed spectral norm in the product of LoRA's factors."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.devices.one_by_one import one_by_one
from jaxpeft.optim.adamw import adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.pairs import PairRule, Two
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Rule,
    RuleTransformation,
    at_factor,
    transformation,
)

# So small a sum in the divisor only keeps a matrix of zeros from giving nan.
_TINY = 1e-20


class LoRAMuonState(NamedTuple):
    """State of one factor, float32.

    Attributes:
        mu: its momentum.
    """

    mu: Array


def lora_muon_rule(
    momentum: float | Array,
    nesterov: bool,
    ns_coefficients: tuple[float, float, float],
    ns_steps: int,
    eps: float | Array,
) -> PairRule:
    """The rule of `lora_muon`, which explains the arguments, for two factors."""
    newton_schulz = optax.contrib.scale_by_muon(
        ns_coefficients, ns_steps, beta=0.0, eps=_TINY, nesterov=False
    )

    def init(p: Array, other: tuple[int, ...]) -> LoRAMuonState:
        return LoRAMuonState(jnp.zeros_like(p))

    def side(
        g: Array, state: LoRAMuonState, p: Array, other: Array, ctx: Context
    ) -> tuple[Array, LoRAMuonState]:
        mu = state.mu + (1 - momentum) * (g - state.mu)
        mixed = g + momentum * (mu - g) if nesterov else mu
        root = inverse_root(other.T @ other, eps)
        white = mixed @ root
        sign: Any = newton_schulz.update(white, newton_schulz.init(p))[0]
        change = -0.5 * ctx.learning_rate * (sign @ root)
        if ctx.decays:
            kept = jnp.sqrt(1 - ctx.rate_times_decay)
            return kept * p + change / kept, LoRAMuonState(mu)
        return p + change, LoRAMuonState(mu)

    def update(g: Two, state: Two, p: Two, ctx: Two, norm: Any) -> tuple[Two, Two]:
        a, mine = side(g[0], state[0], p[0], p[1], ctx[0])
        b, yours = side(g[1], state[1], p[1], p[0], ctx[1])
        return (a, b), (mine, yours)

    return PairRule(init, update)


def inverse_root(gram: Array, eps: float | Array) -> Array:
    """The inverse square root of a Gram matrix; of one of zeros, zeros.

    Args:
        gram: (r, r) float32, symmetric and not negative.
        eps: eigenvalues below so many times the largest count as that.

    Returns:
        (r, r) float32.
    """
    values, vectors = one_by_one(jnp.linalg.eigh)(gram)
    largest = values[-1]
    floored = jnp.maximum(values, eps * largest)
    roots = jnp.where(largest > 0, 1 / jnp.sqrt(jnp.where(largest > 0, floored, 1)), 0)
    return (vectors * roots) @ vectors.T


@in_range
def lora_muon(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    nesterov: bool = False,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: float = 1e-6,
    adam_learning_rate_factor: float = 1.0,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
    adam_eps: float = 1e-8,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Muon for the product a b of LoRA's factors, without ever forming it.

        m_a <- m_a + (1 - momentum) (g_a - m_a), and m_b likewise
        R_a = (a^T a)^(-1/2),  R_b = (b b^T)^(-1/2)
        d_a = -rate / 2 sign(m_a R_b) R_b,  d_b = -rate / 2 R_a sign(R_a m_b)
        s = sqrt(1 - rate * weight_decay),  a <- s a + d_a / s,  b <- s b + d_b / s

    sign(X) is the nearest orthogonal matrix, by Muon's iteration. So d_a b and a d_b
    have a spectral norm of rate / 2 each, whatever the rank and however the product is
    split: for any invertible T, a T and T^-1 b make the same course of the product. The
    kernel changes by LoRA's scale times as much. The decay is that of the product.

    From Cesista et al., 2026, arXiv 2606.12921, without second moments and without QR.
    Their inverse roots are by an iteration with a damping; here they are by
    eigenvalues, with a floor that moves with the largest, so that no scale matters and
    b may start at zero.

    State: m in float32, 4 bytes a parameter. a and b are the leaves of such names side
    by side; others get AdamW.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        weight_decay: the factor of the decay in the formulas; 0: none.
        momentum: the decay of m, from 0 to below 1.
        nesterov: whether the step looks ahead along m.
        ns_coefficients: the coefficients of the iteration, see `muon`.
        ns_steps: the rounds of the iteration, 1 or more.
        eps: eigenvalues below so many times the largest count as that, 0 or more.
        adam_learning_rate_factor: AdamW's rate over the common one, 0 or more.
        adam_b1: AdamW's b1, from 0 to below 1.
        adam_b2: AdamW's b2, from 0 to below 1.
        adam_eps: AdamW's eps, 0 or more.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    alone = at_factor(adamw_rule(adam_b1, adam_b2, adam_eps), adam_learning_rate_factor)
    pair = lora_muon_rule(momentum, nesterov, ns_coefficients, ns_steps, eps)
    return transformation(
        Rule(alone.init, alone.update, pair=pair),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

"""Riemannian AdamW: LoRA's gradients in the geometry of their product."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import jax.scipy.linalg
import optax
from jax import Array

from jaxpeft.devices.one_by_one import one_by_one
from jaxpeft.optim.adamw import adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.pairs import PairRule, Two
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import Place, Rule, RuleTransformation, transformation


def riemannian_rule(adam: Rule, reg: float | Array) -> PairRule:
    """The rule of `riemannian_adamw` for two factors, around that of AdamW."""

    def init(p: Array, other: tuple[int, ...]) -> Any:
        return adam.init(p, Place(""))

    def update(g: Two, state: Two, p: Two, ctx: Two, norm: Any) -> tuple[Two, Two]:
        scaled = scaled_gradient(g[0], p[1], reg), scaled_gradient(g[1], p[0], reg)
        (a, mine), (b, yours) = map(adam.update, scaled, state, p, ctx)
        return (a, b), (mine, yours)

    return PairRule(init, update)


def scaled_gradient(g: Array, other: Array, reg: float | Array) -> Array:
    """The gradient of a factor times the inverse of the other's Gram matrix.

    Args:
        g: (d, r) float32.
        other: the other factor, (n, r) float32.
        reg: what is added to the diagonal of the Gram matrix.

    Returns:
        (d, r) float32.
    """
    gram = other.T @ other + reg * jnp.eye(other.shape[1])
    solve = partial(jax.scipy.linalg.solve, assume_a="pos")
    return one_by_one(solve)(gram, g.T).T


@in_range
def riemannian_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    reg: float = 1e-2,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """AdamW on gradients of LoRA's factors that are scaled by r x r matrices.

        g_a <- g_a (b b^T + reg I)^-1,  g_b <- (a^T a + reg I)^-1 g_b
        then AdamW, as `adamw` has it

    These are the gradients in a metric that depends on the product a b alone (Zhang &
    Pilanci, 2024, arXiv 2402.02347, "scaled AdamW"): with `reg` 0 and without Adam,
    a <- a c, b <- b / c changes no update of the product. Adam's division by the root
    of v undoes a part of it: multiplied by c, the step of a stays as it was.

    State: m and v in float32, 8 bytes a parameter. Equal to PEFT's
    `create_riemannian_optimizer` around torch.optim.AdamW. a and b are the leaves of
    such names side by side; others get AdamW.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay; 0: none.
        reg: what is added to the diagonals, above 0, since b starts at zero.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    adam = adamw_rule(b1, b2, eps)
    return transformation(
        adam._replace(pair=riemannian_rule(adam, reg)),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

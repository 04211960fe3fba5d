"""GaLore: Adam on the gradient's leading singular directions (Zhao et al., 2024)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.optim.adamw import AdamState
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.projection import (
    LateAdam,
    Projector,
    Targets,
    project,
    project_back,
    projected,
    reduced_axis,
    svd_projector,
)
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
)


class GaloreState(NamedTuple):
    """State of one projected matrix, float32.

    Attributes:
        mu: (channels, rank), the moving average of the projected gradients.
        nu: (channels, rank), the moving average of their squares.
        projection: (reduced, rank), zeros before the first step.
    """

    mu: Array
    nu: Array
    projection: Array


def galore_rule(
    adam: LateAdam, projector: Projector, targets: Targets, rank: int, scale: float
) -> Rule:
    """The rule of `galore`, whatever its projections come from.

    Args:
        adam: the Adam of the projected gradients, and of the tensors left out.
        projector: where the projections come from; it stores them.
        targets: which matrices are projected.
        rank: the length that their reduced axis is projected to.
        scale: what multiplies the step of a projected matrix.
    """

    def init(p: Array, place: Place) -> GaloreState | AdamState:
        if not targets.include(place.name, p.shape):
            return AdamState(jnp.zeros_like(p), jnp.zeros_like(p))
        reduced = reduced_axis(p.shape)
        low = (p.shape[1 - reduced], rank)
        return GaloreState(
            jnp.zeros(low, p.dtype),
            jnp.zeros(low, p.dtype),
            jnp.zeros((p.shape[reduced], rank), p.dtype),
        )

    def update(g: Array, state: Any, p: Array, ctx: Context) -> tuple[Array, Any]:
        if isinstance(state, AdamState):
            u, mu, nu = adam.direction(g, *state)
            return adam.moved(p, u, ctx), AdamState(mu, nu)
        projection = projector.projection(g, state.projection, ctx)
        u, mu, nu = adam.direction(project(g, projection), state.mu, state.nu)
        u = project_back(u, projection, p.shape) * scale
        return adam.moved(p, u, ctx), GaloreState(mu, nu, projection)

    return Rule(init, update)


@in_range
def galore(
    learning_rate: optax.ScalarOrSchedule,
    rank: int = 128,
    scale: float = 0.25,
    update_proj_gap: int = 200,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    target_modules: str | list[str] | None = None,
    mask: Any = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """Adam in the space of the gradient's `rank` leading singular vectors.

        low = g P                                 (channels, rank)
        m <- b1 m + (1 - b1) low,  v <- b2 v + (1 - b2) low**2,  u = m / (sqrt(v) + eps)
        p <- p - rate sqrt(1 - b2**t) / (1 - b1**t) scale u P^T
        p <- p - rate weight_decay p

    P holds the singular vectors of the matrix's shorter side, taken from the gradient
    whenever (t - 1) % update_proj_gap == 0; the moments stay, though their axes have
    changed. In between nothing is decomposed, nor in stacked layers.

    Tensors that are not projected get plain AdamW with these formulas. State: for a
    matrix of c channels and a shorter side of d, 4 rank (2 c + d) bytes; other tensors
    8 bytes a parameter, float32.

    The reference is galore-torch's GaLoreAdamW with proj_type "std" and transformers'
    defaults. Before the second projection both agree to rounding. After it they part: a
    decomposition leaves signs, and rotations among close values, open, and the moments
    meet them. Here the largest entry of a vector is positive, so that runs repeat.
    `optax.contrib.galore` keeps the other side of the matrix and is another algorithm.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        rank: the columns of P, 1 or more.
        scale: what multiplies the step of a projected matrix, above 0.
        update_proj_gap: the updates that one P serves, 1 or more.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        target_modules: which matrices are projected, by default all of them (see
            `projection.Targets`).
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once; at `init` for a rank
            above a targeted matrix's shorter side and for targets that match no matrix.
    """
    targets = Targets(target_modules)
    rule = galore_rule(
        LateAdam(b1, b2, eps),
        svd_projector(rank, update_proj_gap),
        targets,
        rank,
        scale,
    )
    return projected(
        rule,
        targets,
        rank,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

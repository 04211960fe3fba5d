"""Adam-mini: one second moment for a block of weights (Zhang et al., 2024)."""

import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import check_pattern, in_range
from jaxpeft.optim.rule import (
    Context,
    Place,
    Rule,
    RuleTransformation,
    debias,
    transformation,
)

FULL = r"(.*\.)?bias"
ROWS = r"(.*\.)?embedding(\.a)?"
HEADS = r"(.*\.)?[qk]_proj\.kernel(\.b)?"
COLUMNS = r"(.*\.)?(kernel(\.[ab])?|embedding\.b)"


class AdamMiniState(NamedTuple):
    """State of one tensor, float32.

    Attributes:
        mu: the moving average of the gradients, like the tensor.
        nu: the moving average of the mean squares, one entry for each block.
    """

    mu: Array
    nu: Array


class Blocks(NamedTuple):
    """How a tensor falls into blocks that share a second moment.

    Attributes:
        shape: the tensor's shape, its last axis perhaps split in two.
        axes: the axes of `shape` that a block extends along; none: every entry is a
            block.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def means(self, squares: Array) -> Array:
        """The mean of each block, the axes kept with a length of 1.

        Args:
            squares: an array shaped like the tensor.
        """
        return jnp.mean(squares.reshape(self.shape), axis=self.axes, keepdims=True)

    def spread(self, values: Array, like: Array) -> Array:
        """The blocks' values, one for each entry of the tensor `like`.

        Args:
            values: what `means` returns.
            like: an array shaped like the tensor.
        """
        return jnp.broadcast_to(values, self.shape).reshape(like.shape)


class Patterns(NamedTuple):
    """Regular expressions for whole dotted names; the first that matches counts.

    Attributes:
        full: tensors whose every entry is a block.
        rows: tensors whose rows are blocks.
        heads: tensors whose blocks are `head_dim` columns each.
        columns: tensors whose columns are blocks.
        head_dim: the columns of a head; None: `heads` have a block for each column.
    """

    full: str
    rows: str
    heads: str
    columns: str
    head_dim: int | None

    def blocks(self, name: str, shape: tuple[int, ...]) -> Blocks:
        """The blocks of a tensor.

        Args:
            name: the dotted name of its leaf.
            shape: its shape; of a stack, that of a layer.

        Raises:
            InputError: where `head_dim` does not divide the columns.
        """
        every = tuple(range(len(shape)))
        if re.fullmatch(self.full, name):
            return Blocks(shape, ())
        if re.fullmatch(self.rows, name):
            return Blocks(shape, every[-1:])
        if re.fullmatch(self.heads, name) and self.head_dim is not None and shape:
            if shape[-1] % self.head_dim:
                raise InputError(
                    f"optimizer.head_dim: found {self.head_dim}; does not divide the "
                    f"{shape[-1]} columns of {name!r}"
                )
            split = (*shape[:-1], shape[-1] // self.head_dim, self.head_dim)
            return Blocks(split, (*every[:-1], len(shape)))
        if re.fullmatch(self.heads, name) or re.fullmatch(self.columns, name):
            return Blocks(shape, every[:-1])
        return Blocks(shape, every)


def adam_mini_rule(b1: float, b2: float, eps: float, patterns: Patterns) -> Rule:
    """The rule of `adam_mini`.

    Args:
        b1: the decay of the first moment.
        b2: the decay of the second moments.
        eps: what is added to the root of a second moment.
        patterns: which blocks a tensor falls into, by its name.
    """

    def init(p: Array, place: Place) -> AdamMiniState:
        nu = patterns.blocks(place.name, p.shape).means(jnp.zeros_like(p))
        return AdamMiniState(jnp.zeros_like(p), nu)

    def update(
        g: Array, state: AdamMiniState, p: Array, ctx: Context
    ) -> tuple[Array, AdamMiniState]:
        blocks = patterns.blocks(ctx.place.name, p.shape)
        mu = state.mu + (1 - b1) * (g - state.mu)
        nu = b2 * state.nu + (1 - b2) * blocks.means(jnp.square(g))
        root = jnp.sqrt(nu) / jnp.sqrt(debias(b2, ctx.t)) + eps
        step = blocks.spread(1 / debias(b1, ctx.t) / root, p)
        return ctx.decayed(p) - ctx.learning_rate * (mu * step), AdamMiniState(mu, nu)

    return Rule(init, update)


@in_range
def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    layout: Layout | None = None,
    *,
    head_dim: int | None = None,
    full: str = FULL,
    rows: str = ROWS,
    heads: str = HEADS,
    columns: str = COLUMNS,
) -> RuleTransformation:
    """AdamW with one second moment, and so one step size, for a block of weights.

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) mean over the block of g**2
        p <- p (1 - rate * weight_decay)
        p <- p - rate * m / (1 - b1**t) / (sqrt(v) / sqrt(1 - b2**t) + eps)

    The blocks of a tensor follow from its dotted name, by the first of the regular
    expressions `full`, `rows`, `heads` and `columns` that matches the whole of it. The
    rest are one block: the norms.

    State: m in float32, 4 bytes a parameter, and 4 bytes a block. Equal to version
    1.1.1 of the authors' `Adam_mini`, whose kernels are (out, in), except that LoRA's
    factors, for which it has no rule, go by outputs or heads like their kernels, and
    that what does not decay is the business of `mask`: theirs leaves out all names with
    "norm", "ln" or "bias".

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
        head_dim: the columns of a head, above 0; None: the tensors of `heads` have a
            block for each column, finer than the reference and hardly larger.
        full: the tensors whose every entry is a block by itself; the biases.
        rows: the tensors whose rows are blocks, that is, everything but the last axis
            apart; a token of the embedding.
        heads: the tensors whose blocks are `head_dim` columns each, a head of a query
            or key kernel, which is (in, out).
        columns: the tensors whose columns are blocks, an output of a kernel or of a
            LoRA factor, a token of the head.

    Raises:
        InputError: for settings out of their range, all at once, for a pattern that is
            no regular expression, and where `head_dim` does not divide the columns.
    """
    patterns = Patterns(full, rows, heads, columns, head_dim)
    for key in ("full", "rows", "heads", "columns"):
        check_pattern(key, getattr(patterns, key))
    return transformation(
        adam_mini_rule(b1, b2, eps, patterns),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )

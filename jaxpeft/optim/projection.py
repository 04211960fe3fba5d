"""Projections of a gradient to fewer rows or columns, and the matrices that get one.

What APOLLO and GaLore have in common. A targeted matrix has a *channel* axis, which
stays, and a *reduced* one of length d, of which a projection P (d, rank) keeps `rank`
combinations. The reduced axis is the shorter one. Kernels are (in, out) here and
(out, in) in torch; of a square kernel the references reduce the inputs, and so does
this module. (Of a square embedding, which both store alike, they would not agree.)
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft.devices.one_by_one import one_by_one
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.ranges import check_pattern
from jaxpeft.optim.rule import (
    Context,
    Rule,
    RuleTransformation,
    debias,
    transformation,
)

_HIGHEST = jax.lax.Precision.HIGHEST


def reduced_axis(shape: tuple[int, ...]) -> int:
    """The axis of a matrix that is projected: the shorter one, at a tie the first.

    Args:
        shape: the matrix's two lengths.
    """
    return 0 if shape[0] <= shape[1] else 1


def project(g: Array, projection: Array) -> Array:
    """The matrix whose reduced axis has gone through a projection, (channels, rank).

    Args:
        g: the matrix, (rows, columns).
        projection: P, (d, rank), where d is the length of the reduced axis.
    """
    axes = (reduced_axis(g.shape), 0)
    return jnp.tensordot(g, projection, axes, precision=_HIGHEST)


def project_back(low: Array, projection: Array, shape: tuple[int, ...]) -> Array:
    """A matrix of `shape` from (channels, rank): the transpose of `project`.

    Args:
        low: (channels, rank).
        projection: P, (d, rank), where d is the length of the reduced axis.
        shape: the two lengths of the result.
    """
    if reduced_axis(shape) == 0:
        return jnp.matmul(projection, low.T, precision=_HIGHEST)
    return jnp.matmul(low, projection.T, precision=_HIGHEST)


class Projector(NamedTuple):
    """Where the projection P of a step comes from.

    Attributes:
        projection: (gradient, the last P, context) -> P (d, rank), float32.
        stored: whether the last P is kept in the state; if not, it is None in the call.
    """

    projection: Callable[[Array, Any, Context], Array]
    stored: bool


def random_projector(rank: int, gap: int, seed: int) -> Projector:
    """Projections with entries N(0, 1) / sqrt(rank), another every `gap` steps.

    They are never stored: P follows from the seed, the tensor's index and
    (t - 1) // gap alone.

    Args:
        rank: the columns of P.
        gap: the steps that one P serves.
        seed: the seed of the random numbers.
    """

    def projection(g: Array, last: Any, ctx: Context) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), ctx.index)
        key = jax.random.fold_in(key, (ctx.t - 1) // gap)
        d = g.shape[reduced_axis(g.shape)]
        return jax.random.normal(key, (d, rank), jnp.float32) / jnp.sqrt(float(rank))

    return Projector(projection, stored=False)


def svd_projector(rank: int, gap: int) -> Projector:
    """Projections to the gradient's leading singular vectors, kept between changes.

    They are taken anew where (t - 1) % gap == 0.

    Args:
        rank: the columns of P.
        gap: the steps that one P serves.
    """

    def projection(g: Array, last: Array, ctx: Context) -> Array:
        # Every tensor has the same t, so that under `vmap` this remains a branch.
        fresh = (ctx.t - 1) % gap == 0
        return jax.lax.cond(fresh, lambda: singular_vectors(g, rank), lambda: last)

    return Projector(projection, stored=True)


def singular_vectors(g: Array, rank: int) -> Array:
    """The leading singular vectors of a matrix on its reduced axis, (d, rank).

    The largest entry of each is positive: the decomposition leaves the sign open, and
    moments that live on would otherwise meet one or the other.

    Args:
        g: the matrix, (rows, columns).
        rank: how many vectors.
    """
    thin = partial(jnp.linalg.svd, full_matrices=False)
    u, _, vh = one_by_one(thin)(g)
    vectors = (u if reduced_axis(g.shape) == 0 else vh.T)[:, :rank]
    largest = jnp.argmax(jnp.abs(vectors), axis=0)[None]
    return vectors * jnp.where(
        jnp.take_along_axis(vectors, largest, axis=0) < 0, -1.0, 1.0
    )


class LateAdam(NamedTuple):
    """The Adam of APOLLO and GaLore: eps on the raw root, and decay after the step.

        m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g**2,  u = m / (sqrt(v) + eps)
        p <- p - rate sqrt(1 - b2**t) / (1 - b1**t) u,  p <- p - rate weight_decay p

    Attributes:
        b1: the decay of m.
        b2: the decay of v.
        eps: what is added to the root of v.
        correct_bias: whether the rate has the two factors 1 - b**t.
    """

    b1: float
    b2: float
    eps: float
    correct_bias: bool = True

    def direction(self, g: Array, mu: Array, nu: Array) -> tuple[Array, Array, Array]:
        """The direction and both moments after a gradient.

        Args:
            g: the gradient.
            mu: the moment m, shaped like it.
            nu: the moment v, shaped like it.

        Returns:
            (u, m, v) of the formulas.
        """
        mu = self.b1 * mu + (1 - self.b1) * g
        nu = self.b2 * nu + (1 - self.b2) * jnp.square(g)
        return mu / (jnp.sqrt(nu) + self.eps), mu, nu

    def moved(self, p: Array, u: Array, ctx: Context) -> Array:
        """The tensor after a step along -u and its decay.

        Args:
            p: the tensor.
            u: the direction, shaped like it.
            ctx: the step, with the tensor's settings.
        """
        rate = ctx.learning_rate
        if self.correct_bias:
            rate = rate * jnp.sqrt(debias(self.b2, ctx.t)) / debias(self.b1, ctx.t)
        p = p - rate * u
        return p if not ctx.decays else p + (-ctx.rate_times_decay) * p


@dataclass(frozen=True)
class Targets:
    """Which matrices are projected: `target_modules` as transformers reads it.

    A name is the dotted one of the leaf, with or without a last ".kernel". What is not
    a matrix is never projected.

    Attributes:
        modules: None: all matrices. A string: a regular expression for the whole name,
            or "all-linear" for every kernel. A list: of each entry that it is a part of
            the name, or a regular expression for the whole of it.
    """

    modules: str | list[str] | None = None

    def include(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is projected.

        Args:
            name: the dotted name of its leaf.
            shape: its shape; of a stack, that of a layer.
        """
        if len(shape) != 2 or 0 in shape or self.modules is None:
            return len(shape) == 2 and 0 not in shape
        if isinstance(self.modules, str):
            return _matches(self.modules, name, part=False)
        return any(_matches(entry, name, part=True) for entry in self.modules)

    def problems(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """What is wrong with the targets for these tensors; empty if nothing is.

        Args:
            shapes: the shapes of the tensors by dotted name; of a stack, that of a
                layer.

        Raises:
            InputError: for an entry that is no regular expression.
        """
        if self.modules is None:
            return []
        part = not isinstance(self.modules, str)
        entries = [self.modules] if isinstance(self.modules, str) else self.modules
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        names = ", ".join(matrices[:3]) or "none"
        for entry in entries:
            check_pattern("target_modules", entry)
        if not entries or "" in entries:
            return [
                f"optimizer.target_modules: found {self.modules!r}; name some, or "
                "leave it out"
            ]
        return [
            f"optimizer.target_modules: no matrix that trains has a name that matches "
            f"{entry!r}; the names are such as {names}"
            for entry in entries
            if not any(_matches(entry, name, part) for name in matrices)
        ]


def projected(
    rule: Rule,
    targets: Targets,
    rank: int,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    mask: Any,
    layout: Layout | None,
) -> RuleTransformation:
    """The transformation of a rule that projects what `targets` include to `rank`.

    Its `init` raises InputError for a rank above a targeted matrix's shorter side and
    for targets that match no matrix.

    Args:
        rule: the mathematics for one tensor.
        targets: which matrices the rule projects.
        rank: the length that their shorter side is projected to.
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        weight_decay: everybody's decay.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.
    """

    def problems(shapes: dict[str, tuple[int, ...]]) -> list[str]:
        messages = targets.problems(shapes)
        chosen = {n: s for n, s in shapes.items() if targets.include(n, s)}
        name = min(chosen, key=lambda n: min(chosen[n]), default=None)
        if name is not None and rank > min(chosen[name]):
            rows, columns = chosen[name]
            messages.append(
                f"optimizer.rank: found {rank}; the matrix {name} is {rows} x "
                f"{columns}, and its shorter side is projected; use at most "
                f"{min(rows, columns)}, or leave it out of target_modules"
            )
        return messages

    return transformation(
        rule,
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
        problems=problems,
    )


def _matches(entry: str, name: str, part: bool) -> bool:
    names = (name, name.removesuffix(".kernel"))
    if not part and entry.replace("_", "-") == "all-linear":
        return "kernel" in name.split(".")
    return (part and entry in name) or any(re.fullmatch(entry, n) for n in names)

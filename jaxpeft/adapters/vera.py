"""VeRA: random projections that all layers share, and trained vectors between them.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2024.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float32

from jaxpeft import kernel as kernels
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes


@struct.dataclass
class VeRA:
    """The kernel `base + scale * a @ diag(lambda_d) @ b @ diag(lambda_b)`.

    Attributes:
        base: the kernel, (*layers, d_in, d_out), frozen.
        a: (d_in, r) float32, frozen, without a layer axis: one for the whole stack.
        b: (r, d_out) float32, frozen, likewise.
        lambda_d: (*layers, r) float32, trained.
        lambda_b: (*layers, d_out) float32, trained.
        scale: (*layers,) float32, 0 in a layer that is left out.
        key: (*layers,) keys while dropout is on, or None.
        dropout: the rate at which the inputs of the update are dropped.
        seed: what `a` and `b` are drawn from, for the adapter's file.
    """

    base: Any
    a: Array
    b: Array
    lambda_d: Array
    lambda_b: Array
    scale: Array
    key: Array | None = None
    dropout: float = struct.field(pytree_node=False, default=0.0)
    seed: int = struct.field(pytree_node=False, default=0)

    TRAINABLE = ("lambda_d", "lambda_b")
    SHARED = ("a", "b")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        y = x @ self.base
        if self.key is not None:
            x = kernels.dropout(x, self.dropout, self.key)
        parts = (self.a, self.lambda_d, self.b, self.lambda_b * self.scale)
        a, lambda_d, b, lambda_b = (p.astype(x.dtype) for p in parts)
        return y + (x @ a * lambda_d) @ b * lambda_b

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The float32 matrix of base and update together.

        Returns:
            (*layers, d_in, d_out) float32.
        """
        scale = self.scale[..., None, None]
        update = self.a * self.lambda_d[..., None, :] @ self.b
        return kernels.dense(self.base) + scale * update * self.lambda_b[..., None, :]

    def axes(self, base: Axes) -> "VeRA":
        """The logical axes: `a` and `b` follow the kernel's; the rank is replicated.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        *layers, d_in, d_out = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            a=(d_in, None),
            b=(None, d_out),
            lambda_d=(*layers, None),
            lambda_b=(*layers, d_out),
            scale=tuple(layers),
        )

    def with_key(self, key: Array | None) -> "VeRA":
        """The same adapter with dropout on or off.

        Args:
            key: what the inputs are dropped by, split into one key for each layer;
                None: nothing is dropped.
        """
        if key is not None and self.scale.ndim:
            key = jax.random.split(key, self.scale.shape)
        return dataclasses.replace(self, key=key)


def vera(
    base: Any,
    key: Array,
    *,
    widest: tuple[int, int] | None = None,
    r: int = 256,
    vera_dropout: float = 0.0,
    d_initial: float = 0.1,
    projection_prng_key: int = 0,
) -> VeRA:
    """Trained vectors around a kernel, which change nothing at first.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: not used: the modules share what is random.
        widest: the largest d_in and d_out of all adapted modules, whose projections
            are parts of the same two matrices; None: those of `base`.
        r: the inner dimension of the projections.
        vera_dropout: the rate at which the update's inputs are dropped, in [0, 1).
        d_initial: what lambda_d begins at; lambda_b begins at zero.
        projection_prng_key: the seed that the projections are drawn from, and nothing
            else (uniform as PEFT's, by another generator).

    Raises:
        InputError: a number cannot be used.
    """
    del key  # modules share what is random
    *layers, d_in, d_out = base.shape
    problems = []
    if r < 1:
        problems.append(f"adapter.r: found {r}; it must be 1 or more")
    if not 0.0 <= vera_dropout < 1.0:
        problems.append(
            f"adapter.vera_dropout: found {vera_dropout}; it must be in [0, 1)"
        )
    if problems:
        raise InputError(*problems)
    largest_in, _ = widest or (d_in, d_out)
    key_a, key_b = jax.random.split(jax.random.key(projection_prng_key))
    return VeRA(
        base=base,
        a=_vectors(key_a, d_in, r) * (6.0 / largest_in) ** 0.5,
        b=_vectors(key_b, d_out, r).T * (6.0 / r) ** 0.5,
        lambda_d=jnp.full((*layers, r), d_initial, jnp.float32),
        lambda_b=jnp.zeros((*layers, d_out)),
        scale=jnp.ones(tuple(layers), jnp.float32),
        dropout=float(vera_dropout),
        seed=projection_prng_key,
    )


def _vectors(key: Array, count: int, r: int) -> Array:
    """(count, r) uniform in ±1, of which more only add to the end."""

    def one(index: Array) -> Array:
        return jax.random.uniform(
            jax.random.fold_in(key, index), (r,), minval=-1.0, maxval=1.0
        )

    return jax.vmap(one)(jnp.arange(count))

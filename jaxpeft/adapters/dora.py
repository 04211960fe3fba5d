"""DoRA: a LoRA whose columns are rescaled to a trained magnitude (Liu et al., 2024)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float32

from jaxpeft import kernel as kernels
from jaxpeft.adapters.lora import Init, Patterns, lora, low_rank_product
from jaxpeft.devices import host_memory
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes


@struct.dataclass
class DoRA:
    """The kernel `magnitude / |W + scale a b| * (W + scale a b)`, norms by column.

    PEFT's numerics: the norm takes part in no gradient (section 4.3 of the paper). It
    is formed without the matrix, from the columns' own squares: |W + s a b|^2 = |W|^2 +
    2 s b.(a^T W) + s^2 b.(a^T a b). So a quantized base stays as it is.

    Attributes:
        base: the kernel W, (*layers, d_in, d_out), frozen.
        a: (*layers, d_in, r) float32, trained.
        b: (*layers, r, d_out) float32, trained.
        magnitude: (*layers, d_out) float32, trained.
        squares: (*layers, d_out) float32, |W|^2 of every column.
        scale: (*layers,) float32; where it is 0 the layer is left as it was.
        key: (*layers,) keys while dropout is on, or None.
        ranks: of the layers where they differ; what is beyond a layer's own is zero.
        dropout: the rate at which inputs are dropped.
        lora_alpha: as given to `dora`, or as a pattern says for the first layer.
        use_rslora: whether the scale is alpha / sqrt(r).
    """

    base: Any
    a: Array
    b: Array
    magnitude: Array
    squares: Array
    scale: Array
    key: Array | None = None
    ranks: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    dropout: float = struct.field(pytree_node=False, default=0.0)
    lora_alpha: float = struct.field(pytree_node=False, default=8.0)
    use_rslora: bool = struct.field(pytree_node=False, default=False)

    TRAINABLE = ("a", "b", "magnitude")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    @property
    def rank(self) -> int:
        """The inner dimension `r`."""
        return self.a.shape[-1]

    def __rmatmul__(self, x: Array) -> Array:
        gain = self._gain(self._against_base()).astype(x.dtype)
        whole = dropped = x @ self.base
        if self.key is not None:
            x = kernels.dropout(x, self.dropout, self.key)
            dropped = x @ self.base
        update = low_rank_product(x, self.a, self.b, self.scale)
        return whole + (gain - 1) * dropped + gain * update

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The float32 matrix of base, update and magnitudes together.

        Returns:
            (*layers, d_in, d_out) float32.
        """
        base = kernels.dense(self.base)
        update = self.a @ self.b * self.scale[..., None, None]
        against = jnp.swapaxes(self.a, -1, -2) @ base
        return (base + update) * self._gain(against)[..., None, :]

    def axes(self, base: Axes) -> "DoRA":
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
            a=(*layers, d_in, None),
            b=(*layers, None, d_out),
            magnitude=(*layers, d_out),
            squares=(*layers, d_out),
            scale=tuple(layers),
        )

    def with_key(self, key: Array | None) -> "DoRA":
        """The same adapter with dropout on or off.

        Args:
            key: what the inputs are dropped by, split into one key for each layer;
                None: nothing is dropped.
        """
        if key is not None and self.scale.ndim:
            key = jax.random.split(key, self.scale.shape)
        return dataclasses.replace(self, key=key)

    def _against_base(self) -> Array:
        """a^T W, (r, d_out): as products are formed, so also of quantized weights."""
        frozen = jax.lax.stop_gradient(self.a)
        return (frozen.T @ self.base).astype(jnp.float32)

    def _gain(self, against: Array) -> Array:
        """magnitude / |W + scale a b|, (*layers, d_out) float32."""
        a, b = jax.lax.stop_gradient((self.a, self.b))
        scale = self.scale[..., None]
        inner = jnp.swapaxes(a, -1, -2) @ a @ b
        square = self.squares + 2 * scale * jnp.sum(b * against, -2)
        square = square + scale**2 * jnp.sum(b * inner, -2)
        norm = jax.lax.stop_gradient(jnp.sqrt(jnp.maximum(square, 0.0)))
        gain = self.magnitude / jnp.where(norm > 0, norm, 1.0)
        # A column of zeros has no direction; a layer left out keeps its own.
        return jnp.where((scale == 0) | (norm == 0), 1.0, gain)


def dora(
    base: Any,
    key: Array,
    *,
    names: Sequence[str] = (),
    r: int = 8,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    init_lora_weights: Init = True,
    rank_pattern: Patterns | None = None,
    alpha_pattern: Patterns | None = None,
) -> DoRA:
    """A LoRA around a kernel (*layers, d_in, d_out), its columns' magnitudes trained.

    The product is unchanged at first. The other arguments are those of `lora`.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: of the draw.
        init_lora_weights: as for `lora`, but for those that begin with the base's own
            directions.

    Raises:
        InputError: a number cannot be used.
    """
    inner = lora(
        base,
        key,
        names=names,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
        init_lora_weights=init_lora_weights,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    if inner.start_a is not None:
        raise InputError(
            f"adapter.init_lora_weights: found {init_lora_weights!r} with dora, whose "
            "magnitudes are of the whole base; use true, or method lora"
        )
    return of_lora(inner)


def of_lora(inner: Any) -> DoRA:
    """The DoRA with a LoRA's factors, its magnitudes the norms of the base's columns.

    Args:
        inner: the LoRA.
    """
    squares = column_squares(inner.base)
    return DoRA(
        base=inner.base,
        a=inner.a,
        b=inner.b,
        magnitude=jnp.sqrt(squares),
        squares=squares,
        scale=inner.scale,
        ranks=inner.ranks,
        dropout=inner.dropout,
        lora_alpha=inner.lora_alpha,
        use_rslora=inner.use_rslora,
    )


def column_squares(base: Any) -> Float32[Array, "*layers d_out"]:
    """The sum of the squares of every column, formed a layer at a time.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.

    Returns:
        (*layers, d_out) float32.
    """
    return _of_layer(base) if len(base.shape) == 2 else _of_stack(base)


def _of_layer(layer: Any) -> Array:
    return jnp.sum(jnp.square(kernels.dense(host_memory.brought(layer))), axis=-2)


@jax.jit  # compiled once for all modules of a shape
def _of_stack(base: Any) -> Array:
    return jax.lax.map(_of_layer, base)

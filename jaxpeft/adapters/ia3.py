"""(IA)^3: activations rescaled by trained vectors (Liu et al., 2022)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpeft import kernel as kernels
from jaxpeft.kernel import Axes


@struct.dataclass
class IA3:
    """The kernel whose output, or whose input in a feed-forward module, is rescaled.

    gain: (*layers, d_out) or (*layers, d_in) float32, trained from ones. scale:
    (*layers,) float32, 0 in a layer that the target pattern leaves out.
    """

    base: Any
    gain: Array
    scale: Array
    feedforward: bool = struct.field(pytree_node=False, default=False)

    TRAINABLE = ("gain",)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix: (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        gain = self._gain().astype(x.dtype)
        return (x * gain) @ self.base if self.feedforward else (x @ self.base) * gain

    def linear(self, x: Array, bias: Array) -> Array:
        """The output with its bias, which is rescaled with it, as in PEFT."""
        if self.feedforward:
            return x @ self + bias.astype(x.dtype)
        y = x @ self.base
        return (y + bias.astype(y.dtype)) * self._gain().astype(y.dtype)

    def dense_bias(self, bias: Array) -> Array:
        """The bias of the module that `dense` belongs to, float32."""
        bias = bias.astype(jnp.float32)
        return bias if self.feedforward else bias * self._gain()

    def dense(self) -> Array:
        """The float32 matrix, rows or columns rescaled."""
        gain = self._gain()
        gain = gain[..., :, None] if self.feedforward else gain[..., None, :]
        return kernels.dense(self.base) * gain

    def axes(self, base: Axes) -> "IA3":
        """The gains follow the dimension that they rescale."""
        *layers, d_in, d_out = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            gain=(*layers, d_in if self.feedforward else d_out),
            scale=tuple(layers),
        )

    def _gain(self) -> Array:
        return jnp.where(self.scale[..., None] == 0, 1.0, self.gain)


def ia3(
    base: Any,
    key: Array,
    *,
    module: str,
    feedforward_modules: tuple[str, ...] = ("down_proj",),
) -> IA3:
    """Gains of one around a kernel (*layers, d_in, d_out); nothing changes at first.

    module: the dotted name of the kernel's module. feedforward_modules: last names of
    modules whose inputs are rescaled, and not their outputs.
    """
    del key  # nothing is random
    *layers, d_in, d_out = base.shape
    feedforward = module.rsplit(".", 1)[-1] in tuple(feedforward_modules)
    return IA3(
        base=base,
        gain=jnp.ones((*layers, d_in if feedforward else d_out)),
        scale=jnp.ones(tuple(layers), jnp.float32),
        feedforward=feedforward,
    )

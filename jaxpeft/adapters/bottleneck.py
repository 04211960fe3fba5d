"""Bottleneck adapters: a small network after a module (Houlsby et al., 2019)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float

from jaxpeft import kernel as kernels
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


@struct.dataclass
class Bottleneck:
    """`y + scale * (act(y @ down + down_bias) @ up + up_bias)`, y of the module.

    There is no matrix that does the same.

    Attributes:
        base: the kernel, (*layers, d_in, d_out), frozen.
        down: (*layers, d_out, size) float32, trained.
        down_bias: (*layers, size) float32, trained.
        up: (*layers, size, d_out) float32, trained.
        up_bias: (*layers, d_out) float32, trained.
        scale: (*layers,) float32, 0 in a layer that is left out.
        activation: the name of `act`, a key of `ACTIVATIONS`.
    """

    base: Any
    down: Array
    down_bias: Array
    up: Array
    up_bias: Array
    scale: Array
    activation: str = struct.field(pytree_node=False, default="relu")

    TRAINABLE = ("down", "down_bias", "up", "up_bias")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel, (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        return self._after(x @ self.base)

    def linear(
        self, x: Float[Array, "*rows d_in"], bias: Float[Array, " d_out"]
    ) -> Float[Array, "*rows d_out"]:
        """The network's output after the whole module, its bias included.

        Args:
            x: (..., d_in).
            bias: of the module, (d_out,).

        Returns:
            (..., d_out) in x's dtype.
        """
        return self._after(kernels.linear(x, self.base, bias))

    def _after(self, y: Array) -> Array:
        parts = (self.down, self.down_bias, self.up, self.up_bias, self.scale)
        down, down_bias, up, up_bias, scale = (p.astype(y.dtype) for p in parts)
        inner = ACTIVATIONS[self.activation](y @ down + down_bias)
        return y + scale * (inner @ up + up_bias)

    def dense(self) -> Array:
        """Never returns, since a network is no matrix.

        Raises:
            InputError: always.
        """
        raise InputError(
            "adapter.method: found 'bottleneck'; its adapters are networks, which "
            "cannot be merged into weights: keep the adapter beside its base"
        )

    def axes(self, base: Axes) -> "Bottleneck":
        """The logical axes: `down` and `up` follow the kernel's output.

        The bottleneck's own width is replicated.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        *layers, _, d_out = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            down=(*layers, d_out, None),
            down_bias=(*layers, None),
            up=(*layers, None, d_out),
            up_bias=(*layers, d_out),
            scale=tuple(layers),
        )


def bottleneck(
    base: Any,
    key: Array,
    *,
    reduction_factor: float = 16.0,
    activation: Literal["relu", "gelu", "silu"] = "relu",
) -> Bottleneck:
    """A small network after a kernel, which changes nothing at first.

    `down` is drawn normal with deviation 0.02, `up` is zero. Placed after attention and
    MLP (`o_proj` and `down_proj`, the default) they are the adapters of Houlsby et al.
    (2019), after the MLP alone (`down_proj`) those of Pfeiffer et al. (2021).

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: of the draw.
        reduction_factor: the kernel's output width over that of the bottleneck.
        activation: the function between the two matrices.

    Raises:
        InputError: the factor leaves no bottleneck.
    """
    *layers, _, d_out = base.shape
    size = int(d_out / reduction_factor) if reduction_factor > 0 else 0
    if not 1 <= size <= d_out:
        raise InputError(
            f"adapter.reduction_factor: found {reduction_factor}; it must be from 1 to "
            f"{d_out}, the width of the modules"
        )
    return Bottleneck(
        base=base,
        down=0.02 * jax.random.normal(key, (*layers, d_out, size)),
        down_bias=jnp.zeros((*layers, size)),
        up=jnp.zeros((*layers, size, d_out)),
        up_bias=jnp.zeros((*layers, d_out)),
        scale=jnp.ones(tuple(layers), jnp.float32),
        activation=activation,
    )

"""(IA)^3: activations rescaled by trained vectors (Liu et al., 2022)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Float32

from jaxpeft import kernel as kernels
from jaxpeft.adapters.targets import Wanted, is_named
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes


@struct.dataclass
class IA3:
    """The kernel whose output, or whose input in a feed-forward module, is rescaled.

    Attributes:
        base: the kernel, (*layers, d_in, d_out), frozen.
        gain: (*layers, d_out), or (*layers, d_in) in a feed-forward module, float32,
            trained from ones.
        scale: (*layers,) float32, 0 in a layer that the target pattern leaves out.
        feedforward: whether the input is rescaled, and not the output.
    """

    base: Any
    gain: Array
    scale: Array
    feedforward: bool = struct.field(pytree_node=False, default=False)

    TRAINABLE = ("gain",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        gain = self._gain().astype(x.dtype)
        return (x * gain) @ self.base if self.feedforward else (x @ self.base) * gain

    def linear(
        self, x: Float[Array, "*rows d_in"], bias: Float[Array, " d_out"]
    ) -> Float[Array, "*rows d_out"]:
        """The output with its bias, which is rescaled with it, as in PEFT.

        Args:
            x: (..., d_in).
            bias: of the module, (d_out,).

        Returns:
            (..., d_out) in x's dtype.
        """
        if self.feedforward:
            return x @ self + bias.astype(x.dtype)
        y = x @ self.base
        return (y + bias.astype(y.dtype)) * self._gain().astype(y.dtype)

    def dense_bias(
        self, bias: Float[Array, "*layers d_out"]
    ) -> Float32[Array, "*layers d_out"]:
        """The bias of the module whose matrix `dense` gives.

        Args:
            bias: of the base's module, (*layers, d_out).

        Returns:
            (*layers, d_out) float32.
        """
        bias = bias.astype(jnp.float32)
        return bias if self.feedforward else bias * self._gain()

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The float32 matrix, its rows or columns rescaled.

        Returns:
            (*layers, d_in, d_out) float32.
        """
        gain = self._gain()
        gain = gain[..., :, None] if self.feedforward else gain[..., None, :]
        return kernels.dense(self.base) * gain

    def axes(self, base: Axes) -> "IA3":
        """The logical axes: the gains follow the dimension that they rescale.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
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
    adapted: Sequence[str],
    feedforward_modules: tuple[str, ...] | str = ("down_proj", "mlp.c_proj"),
) -> IA3:
    """Gains around a kernel, all of them one: nothing changes at first.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: not used; nothing is random.
        adapted: the dotted names of the modules behind the kernel's layers, those that
            are adapted.
        feedforward_modules: names, or ends of them, of modules whose inputs are
            rescaled, and not their outputs; a text is a regular expression that must
            match the whole name, as in PEFT.

    Raises:
        InputError: `feedforward_modules` is no regular expression, or means some of
            the layers only.
    """
    del key  # nothing is random
    *layers, d_in, d_out = base.shape
    feedforward = is_feedforward(adapted, feedforward_modules)
    return IA3(
        base=base,
        gain=jnp.ones((*layers, d_in if feedforward else d_out)),
        scale=jnp.ones(tuple(layers), jnp.float32),
        feedforward=feedforward,
    )


def is_feedforward(adapted: Sequence[str], feedforward_modules: Wanted) -> bool:
    """Whether the modules of one stack are rescaled at their inputs.

    Args:
        adapted: the dotted names of the modules, one for each adapted layer.
        feedforward_modules: as for `ia3`.

    Raises:
        InputError: it is no regular expression, or means some of the layers only.
    """
    key = "adapter.feedforward_modules"
    hits = {name: is_named(name, feedforward_modules, key) for name in adapted}
    if len(set(hits.values())) > 1:
        first = {hit: name for name, hit in reversed(hits.items())}
        raise InputError(
            f"{key}: {feedforward_modules!r} means {first[True]!r} and not "
            f"{first[False]!r}; the layers of one module are rescaled alike: at the "
            "inputs of all that target_modules means, or at their outputs"
        )
    return any(hits.values())

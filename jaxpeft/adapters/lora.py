"""LoRA: a frozen kernel plus a trainable low-rank update (Hu et al., 2021)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxpeft import kernel as kernels
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes

Init = bool | Literal["gaussian", "zero"]


@struct.dataclass
class LoRA:
    """The kernel `base + scale * a @ b`, of which only `a` and `b` train.

    It stands in the params tree where `base` stood, so the model's `x @ kernel` is
    unchanged. Leading axes (stacked layers) pass through untouched.

    a: (*layers, d_in, r) and b: (*layers, r, d_out), float32 whatever the base is.
    scale: (*layers,) float32, alpha / r or alpha / sqrt(r); it is 0 in a layer that
    the target pattern leaves out. key: (*layers,) keys while dropout is on, or None.
    """

    base: Any
    a: Array
    b: Array
    scale: Array
    key: Array | None = None
    dropout: float = struct.field(pytree_node=False, default=0.0)
    lora_alpha: float = struct.field(pytree_node=False, default=8.0)
    use_rslora: bool = struct.field(pytree_node=False, default=False)
    train_a: bool = struct.field(pytree_node=False, default=True)

    @property
    def TRAINABLE(self) -> tuple[str, ...]:
        """Its own weights that train."""
        return ("a", "b") if self.train_a else ("b",)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix: (*layers, d_in, d_out)."""
        return self.base.shape

    @property
    def rank(self) -> int:
        """The inner dimension `r`."""
        return self.a.shape[-1]

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.base + self.update(x)

    def update(self, x: Array) -> Array:
        """What is added to `x @ base`, the dropout of `x` included."""
        if self.key is not None:
            x = kernels.dropout(x, self.dropout, self.key)
        return low_rank_product(x, self.a, self.b, self.scale)

    def dense(self) -> Array:
        """The float32 matrix of base and update together."""
        update = self.a @ self.b * self.scale[..., None, None]
        return kernels.dense(self.base) + update

    def axes(self, base: Axes) -> "LoRA":
        """`a` and `b` follow the kernel's dimensions; the rank is replicated."""
        *layers, d_in, d_out = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            a=(*layers, d_in, None),
            b=(*layers, None, d_out),
            scale=tuple(layers),
        )

    def with_key(self, key: Array | None) -> "LoRA":
        """The same adapter dropping by `key`, one key for each layer; None: never."""
        if key is not None and self.scale.ndim:
            key = jax.random.split(key, self.scale.shape)
        return dataclasses.replace(self, key=key)


def lora(
    base: Any,
    key: Array,
    *,
    r: int = 8,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    init_lora_weights: Init = True,
) -> LoRA:
    """A low-rank update around a kernel of shape (*layers, d_in, d_out).

    The product is unchanged at first.

    Initialisation is PEFT's (`init_lora_weights`): true draws A uniform in
    ±1/sqrt(d_in) (Kaiming with a = sqrt 5), "gaussian" normal with deviation 1/r; B is
    zero. "zero" makes A zero too, as a place to load an adapter into; false draws both,
    so that the adapter is no identity (for tests).
    Raises InputError where a number cannot be used.
    """
    *layers, d_in, d_out = base.shape
    problems = []
    if not 1 <= r <= min(d_in, d_out):
        problems.append(
            f"adapter.r: found {r}; the rank of a {d_in} x {d_out} matrix is from 1 to "
            f"{min(d_in, d_out)}"
        )
    if not 0.0 <= lora_dropout < 1.0:
        problems.append(
            f"adapter.lora_dropout: found {lora_dropout}; it must be in [0, 1)"
        )
    if init_lora_weights not in (True, False, "gaussian", "zero"):
        problems.append(
            f"adapter.init_lora_weights: found {init_lora_weights!r}; "
            "choose true, false, gaussian or zero"
        )
    if problems:
        raise InputError(*problems)
    key_a, key_b = jax.random.split(key)
    shape_a, shape_b = (*layers, d_in, r), (*layers, r, d_out)
    a, b = jnp.zeros(shape_a), jnp.zeros(shape_b)
    if init_lora_weights == "gaussian":
        a = jax.random.normal(key_a, shape_a) / r
    elif init_lora_weights != "zero":
        a = jax.random.uniform(key_a, shape_a, minval=-1.0, maxval=1.0) / d_in**0.5
    if init_lora_weights is False:
        b = jax.random.uniform(key_b, shape_b, minval=-1.0, maxval=1.0) / r**0.5
    scale = lora_alpha / (r**0.5 if use_rslora else r)
    return LoRA(
        base=base,
        a=a,
        b=b,
        scale=jnp.full(tuple(layers), scale, jnp.float32),
        dropout=float(lora_dropout),
        lora_alpha=float(lora_alpha),
        use_rslora=use_rslora,
    )


def lora_fa(
    base: Any,
    key: Array,
    *,
    r: int = 8,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
) -> LoRA:
    """LoRA-FA (Zhang et al., 2023): a LoRA whose A stays as it was drawn.

    The keys are those of `lora`. Half of the parameters train, and the input of each
    module is not needed for the backward pass, only its product with A.
    """
    node = lora(
        base,
        key,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
    )
    return dataclasses.replace(node, train_a=False)


@jax.custom_vjp
def low_rank_product(x: Array, a: Array, b: Array, scale: Array) -> Array:
    """`scale * (x @ a) @ b` in x's dtype, with a backward pass of its own.

    x: (..., d_in); a: (d_in, r); b: (r, d_out); scale: (). The scale is a constant:
    its gradient is zero.
    """
    return _low_rank_forward(x, a, b, scale)[0]


def _low_rank_forward(x: Array, a: Array, b: Array, scale: Array) -> tuple:
    low = x @ a.astype(x.dtype)
    low = checkpoint_name(low * scale.astype(x.dtype), "low")
    return low @ b.astype(x.dtype), (x, a, b, scale, low)


def _low_rank_backward(residuals: tuple, dy: Array) -> tuple:
    """Plain autodiff contracts over tokens with the activation on the left, for which
    XLA on CPU first transposes it in a slow copy: a third of a training step. Here
    the small operand is on the left, and the barrier keeps XLA from swapping them."""
    x, a, b, scale, low = residuals
    dlow = (dy @ b.astype(dy.dtype).T) * scale.astype(dy.dtype)
    dx = dlow @ a.astype(dy.dtype).T
    flat_x = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]))
    flat_dlow = dlow.reshape(-1, dlow.shape[-1])
    da = kernels.product("tr,td->rd", flat_dlow, flat_x).T
    flat_dy = dy.reshape(-1, dy.shape[-1])
    db = kernels.product("tr,td->rd", low.reshape(-1, low.shape[-1]), flat_dy)
    return dx, da.astype(a.dtype), db.astype(b.dtype), jnp.zeros_like(scale)


low_rank_product.defvjp(_low_rank_forward, _low_rank_backward)

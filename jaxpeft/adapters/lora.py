"""LoRA: a frozen kernel plus a trainable low-rank update (Hu et al., 2021)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Float32

from jaxpeft import hardware
from jaxpeft import kernel as kernels
from jaxpeft.adapters import lora_init
from jaxpeft.adapters.targets import by_pattern
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes

# Places of an input from which on a GPU's product with the base adds its result onto
# the update: of fewer, one product of base and `a` side by side is the cheaper one.
MANY = 512

Init = bool | str
Patterns = Mapping[str, Any]


@struct.dataclass
class LoRA:
    """The kernel `base + scale * a @ b`, of which only `a` and `b` train.

    It stands in the params tree where `base` stood, so the model's `x @ kernel` is
    unchanged. Leading axes (stacked layers) pass through untouched.

    Attributes:
        base: the kernel, (*layers, d_in, d_out), frozen.
        a: (*layers, d_in, r), float32 whatever the base is.
        b: (*layers, r, d_out), float32 whatever the base is.
        scale: (*layers,) float32, alpha / r or alpha / sqrt(r); it is 0 in a layer that
            the target pattern leaves out.
        key: (*layers,) keys while dropout is on, or None.
        start_a: shaped like `a`: where it began, if the update did not begin at zero
            (PiSSA, OLoRA); `start_a @ start_b` is taken off the update. None: it did.
        start_b: likewise for `b`.
        ranks: of the layers where they differ; what is beyond a layer's own is zero,
            and stays so. None: all have `r`.
        dropout: the rate at which the inputs of the update are dropped.
        lora_alpha: as given to `lora`, or as a pattern says for the first layer.
        use_rslora: whether the scale is alpha / sqrt(r).
        train_a: whether `a` trains; false: `b` alone does (LoRA-FA).
    """

    base: Any
    a: Array
    b: Array
    scale: Array
    key: Array | None = None
    start_a: Array | None = None
    start_b: Array | None = None
    ranks: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    dropout: float = struct.field(pytree_node=False, default=0.0)
    lora_alpha: float = struct.field(pytree_node=False, default=8.0)
    use_rslora: bool = struct.field(pytree_node=False, default=False)
    train_a: bool = struct.field(pytree_node=False, default=True)

    @property
    def TRAINABLE(self) -> tuple[str, ...]:
        """The names of the fields that train."""
        return ("a", "b") if self.train_a else ("b",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    @property
    def rank(self) -> int:
        """The inner dimension `r`."""
        return self.a.shape[-1]

    @property
    def dtype(self) -> Any:
        """The dtype of the weights beneath."""
        return self.base.dtype

    def __rmatmul__(self, x: Array) -> Array:
        if not _adds_onto(x):
            return x @ self.base + self.update(x)
        keep = jax.lax.optimization_barrier
        return x @ self.base + keep(self.update(keep(x)))

    def update(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
        """What is added to `x @ base`, the dropout of `x` included.

        Args:
            x: (..., d_in); the node is that of one layer.

        Returns:
            (..., d_out) in x's dtype.
        """
        began = None
        if self.start_a is not None and self.start_b is not None:
            began = low_rank_product(x, self.start_a, self.start_b, self.scale)
        if self.key is not None:
            x = kernels.dropout(x, self.dropout, self.key)
        update = low_rank_product(x, self.a, self.b, self.scale)
        return update if began is None else update - began

    def __getitem__(self, tokens: Array) -> Array:
        """The rows of an embedding (vocab, d), adapted; in its dtype."""
        update = (self.a[tokens] @ self.b) * self.scale
        return self.base[tokens] + update.astype(self.dtype)

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The float32 matrix of base and update together.

        Returns:
            (*layers, d_in, d_out) float32.
        """
        update = self.a @ self.b
        if self.start_a is not None and self.start_b is not None:
            update = update - self.start_a @ self.start_b
        return kernels.dense(self.base) + update * self.scale[..., None, None]

    def axes(self, base: Axes) -> "LoRA":
        """The logical axes: `a` and `b` follow the kernel's; the rank is replicated.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        *layers, d_in, d_out = base
        a, b = (*layers, d_in, None), (*layers, None, d_out)
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            a=a,
            b=b,
            scale=tuple(layers),
            start_a=None if self.start_a is None else a,
            start_b=None if self.start_b is None else b,
        )

    def plain(self) -> "LoRA":
        """An equal LoRA whose update began at zero, of twice the rank if need be."""
        if self.start_a is None or self.start_b is None:
            return self
        return dataclasses.replace(
            self,
            a=jnp.concatenate([self.a, self.start_a], axis=-1),
            b=jnp.concatenate([self.b, -self.start_b], axis=-2),
            start_a=None,
            start_b=None,
            lora_alpha=self.lora_alpha * (2**0.5 if self.use_rslora else 2),
        )

    def with_key(self, key: Array | None) -> "LoRA":
        """The same adapter with dropout on or off.

        Args:
            key: what the inputs are dropped by, split into one key for each layer;
                None: nothing is dropped.
        """
        if key is not None and self.scale.ndim:
            key = jax.random.split(key, self.scale.shape)
        return dataclasses.replace(self, key=key)


def lora(
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
) -> LoRA:
    """A low-rank update around a kernel, which leaves the product unchanged at first.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: of the draw.
        names: of the modules behind the layers, one for each, which the patterns speak
            of. A layer may hold several matrices (experts), which are of one module.
        r: the rank, from 1 to the smaller of d_in and d_out.
        lora_alpha: the scale times `r`, or times sqrt(r) with `use_rslora`.
        lora_dropout: the rate at which the update's inputs are dropped, in [0, 1).
        use_rslora: whether the scale is alpha / sqrt(r), and not alpha / r.
        init_lora_weights: how it begins, as in PEFT. True draws A uniform in
            ±1/sqrt(d_in) (Kaiming with a = sqrt 5), "gaussian" normal with deviation
            1/r; B is zero. "pissa", "pissa_niter_N" and "olora" begin with the base's
            own main directions (see `lora_init`). "zero" makes A zero too, as a place
            to load an adapter into; false draws both, so that the adapter is no
            identity (for tests).
        rank_pattern: {regular expression: the `r` of the modules whose name ends so},
            as in PEFT; the first one that matches counts.
        alpha_pattern: likewise for `lora_alpha`.

    Raises:
        InputError: a number cannot be used.
    """
    *layers, d_in, d_out = base.shape
    count, shape = math.prod(layers), tuple(layers)
    each = count // max(len(names), 1)
    known = [name for name in names for _ in range(each)] or [""] * count
    ranks = [by_pattern(rank_pattern or {}, name, r) for name in known]
    alphas = [by_pattern(alpha_pattern or {}, name, lora_alpha) for name in known]
    _check(ranks, alphas, lora_dropout, init_lora_weights, (d_in, d_out))
    scales = [
        alpha / (math.sqrt(rank) if use_rslora else rank)
        for alpha, rank in zip(alphas, ranks, strict=True)
    ]
    scale = jnp.asarray(scales, jnp.float32).reshape(shape)
    widest, uneven = max(ranks), len(set(ranks)) > 1
    start = lora_init.draw(init_lora_weights, base, key, widest, scale)
    a, b = start.a, start.b
    if uneven:
        if start.from_base:
            raise InputError(
                f"adapter.init_lora_weights: found {init_lora_weights!r} with a "
                "rank_pattern that differs between layers of one module; use true"
            )
        within = jnp.arange(widest) < jnp.asarray(ranks).reshape(*shape, 1)
        a, b = a * within[..., None, :], b * within[..., None]
    return LoRA(
        base=base,
        a=a,
        b=b,
        scale=scale,
        # Copies: a step takes over the buffers of what trains.
        start_a=jnp.copy(a) if start.from_base else None,
        start_b=jnp.copy(b) if start.from_base else None,
        ranks=tuple(ranks) if uneven else None,
        dropout=float(lora_dropout),
        lora_alpha=float(alphas[0]),
        use_rslora=use_rslora,
    )


def _check(
    ranks: Sequence[int],
    alphas: Sequence[float],
    dropout: float,
    init: Init,
    shape: tuple[int, int],
) -> None:
    """Raises InputError where a number cannot be used for matrices of this shape."""
    most = min(shape)
    problems = [
        f"adapter.r: found {rank}; the rank of a {shape[0]} x {shape[1]} matrix is "
        f"from 1 to {most}"
        for rank in sorted(set(ranks))
        if not 1 <= rank <= most
    ]
    if not 0.0 <= dropout < 1.0:
        problems.append(f"adapter.lora_dropout: found {dropout}; it must be in [0, 1)")
    if not lora_init.is_known(init):
        problems.append(
            f"adapter.init_lora_weights: found {init!r}; choose true, false, gaussian, "
            "zero, pissa, pissa_niter_N (N passes of a faster decomposition) or olora"
        )
    if problems:
        raise InputError(*problems)


def lora_fa(
    base: Any,
    key: Array,
    *,
    names: Sequence[str] = (),
    r: int = 8,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    rank_pattern: Patterns | None = None,
    alpha_pattern: Patterns | None = None,
) -> LoRA:
    """LoRA-FA (Zhang et al., 2023): a LoRA whose A stays as it was drawn.

    The arguments are those of `lora`. Half of the parameters train, and the input of
    each module is not needed for the backward pass, only its product with A.

    Raises:
        InputError: a number cannot be used.
    """
    node = lora(
        base,
        key,
        names=names,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    return dataclasses.replace(node, train_a=False)


def _adds_onto(x: Array) -> bool:
    """Whether a large product is to add its result onto an update of many places.

    NVIDIA's library multiplies and adds in one pass through memory. Without barriers,
    XLA joins the products with base and `a`, whose parts it then copies, or has the
    narrow product add onto the large one, an array of that size more to read.
    """
    many = math.prod(x.shape[:-1]) >= MANY
    return many and hardware.current().platform == "gpu"


@jax.custom_vjp
def low_rank_product(
    x: Float[Array, "*rows d_in"],
    a: Float[Array, "d_in r"],
    b: Float[Array, "r d_out"],
    scale: Float[Array, ""],
) -> Float[Array, "*rows d_out"]:
    """`scale * (x @ a) @ b` in x's dtype, with a backward pass of its own.

    Args:
        x: (..., d_in).
        a: (d_in, r).
        b: (r, d_out).
        scale: (), a constant: its gradient is zero.

    Returns:
        (..., d_out).
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
    flat_x = jax.lax.optimization_barrier(_tokens(x))
    # Of sequences in parts, each device adds up its own before all do.
    rows = "abcdefgh"[: flat_x.ndim - 1]
    gradient = f"{rows}r,{rows}x->rx"
    flat_dlow = _tokens(dlow)
    with jax.named_scope(kernels.ADAPTER_GRADIENT):
        da = kernels.product(gradient, flat_dlow, flat_x)
    flat_dy = _tokens(dy)
    with jax.named_scope(kernels.ADAPTER_GRADIENT):
        db = kernels.product(gradient, _tokens(low), flat_dy)
    return dx, da.T.astype(a.dtype), db.astype(b.dtype), jnp.zeros_like(scale)


def _tokens(x: Array) -> Array:
    """(..., d) as (tokens, d), but where the mesh splits sequences.

    The places that a device has of several sequences are no range of all tokens: the
    compiler would bring these together first.
    """
    if sharding.CONTEXT in sharding.axis_sizes():
        return x
    return x.reshape(-1, x.shape[-1])


low_rank_product.defvjp(_low_rank_forward, _low_rank_backward)

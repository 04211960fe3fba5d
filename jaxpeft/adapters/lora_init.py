"""How the factors of a LoRA begin, by PEFT's `init_lora_weights`."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import kernel as kernels
from jaxpeft.devices import host_memory

RANDOM = (True, False, "gaussian", "zero")
_NITER = re.compile(r"pissa_niter_(\d{1,3})")
EXTRA = 6  # columns beyond the rank that the faster decomposition works with


class Start(NamedTuple):
    """The factors that a LoRA begins with.

    Attributes:
        a: (*layers, d_in, r) float32.
        b: (*layers, r, d_out) float32.
        from_base: whether `scale * a @ b` is a part of the base, to be taken off it.
    """

    a: Array
    b: Array
    from_base: bool = False


def is_known(init: bool | str) -> bool:
    """Whether there is an initialisation of this name."""
    of_base = init in ("pissa", "olora") or _NITER.fullmatch(str(init)) is not None
    return init in RANDOM or of_base


def draw(init: bool | str, base: Any, key: Array, rank: int, scale: Array) -> Start:
    """The factors that a LoRA around `base` begins with.

    PiSSA (Meng et al., 2024): the `rank` largest singular values of the base with
    their vectors, `pissa_niter_N` by N passes of a randomised decomposition (Halko et
    al., 2011). OLoRA (Buyukakyuz, 2024): its QR decomposition's first columns.

    Args:
        init: PEFT's `init_lora_weights` (see `lora`).
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: of the draw.
        rank: the inner dimension of the factors.
        scale: (*layers,), the factor before `a @ b`.
    """
    *layers, d_in, d_out = base.shape
    if init not in RANDOM:
        factors = _of_base(str(init), key, rank)
        return Start(*_by_layer(factors, base, scale), from_base=True)
    key_a, key_b = jax.random.split(key)
    shape_a, shape_b = (*layers, d_in, rank), (*layers, rank, d_out)
    a, b = jnp.zeros(shape_a), jnp.zeros(shape_b)
    if init == "gaussian":
        a = jax.random.normal(key_a, shape_a) / rank
    elif init != "zero":
        a = jax.random.uniform(key_a, shape_a, minval=-1.0, maxval=1.0) / d_in**0.5
    if init is False:
        b = jax.random.uniform(key_b, shape_b, minval=-1.0, maxval=1.0) / rank**0.5
    return Start(a, b)


def draw_embedding(init: bool | str, base: Any, key: Array, rank: int) -> Start:
    """The factors of an embedding: A zero and B standard normal, as in PEFT.

    Args:
        init: "zero" makes B zero too.
        base: the table, (vocab, d).
        key: of the draw.
        rank: the inner dimension of the factors.
    """
    vocab, width = base.shape
    a, b = jnp.zeros((vocab, rank)), jnp.zeros((rank, width))
    if init != "zero":
        b = jax.random.normal(key, b.shape)
    return Start(a, b)


Factors = Callable[[Array, Array], tuple[Array, Array]]


def _of_base(init: str, key: Array, rank: int) -> Factors:
    """The function (matrix (d_in, d_out) float32, scale ()) -> its factors."""
    passes = _NITER.fullmatch(init)

    def pissa(matrix: Array, scale: Array) -> tuple[Array, Array]:
        u, s, vt = (
            _main_directions(matrix, key, rank, int(passes[1]))
            if passes
            else jnp.linalg.svd(matrix, full_matrices=False)
        )
        root = jnp.sqrt(s[:rank] / scale)
        return u[:, :rank] * root, root[:, None] * vt[:rank]

    def olora(matrix: Array, scale: Array) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(matrix.T)  # PEFT decomposes the transposed matrix
        return r[:rank].T, q[:, :rank].T

    return olora if init == "olora" else pissa


def _main_directions(
    matrix: Array, key: Array, rank: int, passes: int
) -> tuple[Array, Array, Array]:
    """About the largest singular values and vectors, by subspace iteration."""
    d_in, d_out = matrix.shape
    width = min(rank + EXTRA, d_in, d_out)
    q, _ = jnp.linalg.qr(matrix @ jax.random.normal(key, (d_out, width)))
    for _ in range(passes):
        back, _ = jnp.linalg.qr(matrix.T @ q)
        q, _ = jnp.linalg.qr(matrix @ back)
    u, s, vt = jnp.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u, s, vt


def _by_layer(factors: Factors, base: Any, scale: Array) -> tuple[Array, Array]:
    """One layer at a time: a stack would be decomposed in many times its memory."""

    def of_one(args: tuple[Any, Array]) -> tuple[Array, Array]:
        layer, scale = args
        matrix = kernels.dense(host_memory.brought(layer))
        return factors(matrix, jnp.where(scale == 0, 1.0, scale))

    if scale.ndim == 0:
        return of_one((base, scale))
    if scale.ndim > 1:
        return jax.lax.map(lambda args: _by_layer(factors, *args), (base, scale))
    return jax.lax.map(of_one, (base, scale))

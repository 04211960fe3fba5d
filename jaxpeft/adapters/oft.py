"""OFT: inputs rotated block by block before they meet the kernel.

Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", 2023, and
"Orthogonal Finetuning Made Scalable", 2025, which rotates inputs and not weights.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Float32

from jaxpeft import kernel as kernels
from jaxpeft.devices.one_by_one import one_by_one
from jaxpeft.errors import InputError
from jaxpeft.kernel import Axes


@struct.dataclass
class OFT:
    """The kernel `R @ base`, R of orthogonal blocks along its diagonal.

    A block is Cayley's transform of a skew-symmetric Q, whose entries above the
    diagonal train: (I - Q) (I + Q)^-1, or with `use_cayley_neumann` the first terms of
    the series of its inverse, I + 2Q + 2Q^2 + ... + Q^n, as PEFT has both.

    Attributes:
        base: the kernel, (*layers, d_in, d_out), frozen.
        skew: (*layers, size * (size - 1) / 2, blocks) float32, trained from zeros: the
            entries of each Q, row by row. One block where all share it.
        scale: (*layers,) float32, 0 in a layer that is left out.
        use_cayley_neumann: whether the series stands for the inverse.
        num_cayley_neumann_terms: how many of its terms are formed.
        block_share: whether all blocks are one.
        r: how many blocks were asked for; 0: `oft_block_size` says it.
        oft_block_size: the size of a block that was asked for; 0: `r` says it.
    """

    base: Any
    skew: Array
    scale: Array
    use_cayley_neumann: bool = struct.field(pytree_node=False, default=True)
    num_cayley_neumann_terms: int = struct.field(pytree_node=False, default=5)
    block_share: bool = struct.field(pytree_node=False, default=False)
    r: int = struct.field(pytree_node=False, default=0)
    oft_block_size: int = struct.field(pytree_node=False, default=32)

    TRAINABLE = ("skew",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        # What is added to x is rounded, not the rotation: that is close to one.
        turn = self._turn().astype(x.dtype)
        size = turn.shape[-1]
        blocks = x.reshape(*x.shape[:-1], -1, size)
        if self.block_share:
            turned = blocks @ turn[0]
        else:
            turned = jnp.einsum("...kb,kbc->...kc", blocks, turn)
        return (x + turned.reshape(x.shape)) @ self.base

    def dense(self) -> Float32[Array, "*layers d_in d_out"]:
        """The float32 matrix, its rows rotated.

        Returns:
            (*layers, d_in, d_out) float32.
        """
        base, turn = kernels.dense(self.base), self._turn()
        *layers, d_in, d_out = base.shape
        size = turn.shape[-1]
        rows = base.reshape(*layers, d_in // size, size, d_out)
        return base + (turn @ rows).reshape(base.shape)

    def axes(self, base: Axes) -> "OFT":
        """The logical axes: the blocks follow the inputs that they rotate.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        *layers, d_in, _ = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            skew=(*layers, None, d_in),
            scale=tuple(layers),
        )

    def _turn(self) -> Array:
        """The blocks of R - I, (*layers, blocks, size, size) float32."""
        q = _skew_symmetric(self.skew * self.scale[..., None, None])
        if not self.use_cayley_neumann:
            return 2 * _inverse_less_one(q)
        return _series(q, self.num_cayley_neumann_terms)


def oft(
    base: Any,
    key: Array,
    *,
    r: int = 0,
    oft_block_size: int | None = None,
    block_share: bool = False,
    use_cayley_neumann: bool = True,
    num_cayley_neumann_terms: int = 5,
) -> OFT:
    """Rotations around a kernel, by no angle at first: nothing changes.

    Where blocks of the wanted size or number do not divide the kernel's input, the
    nearest that do are taken, as in PEFT.

    Args:
        base: the kernel, (*layers, d_in, d_out), of any kind.
        key: not used; nothing is random.
        r: how many blocks there are; 0: as `oft_block_size` says.
        oft_block_size: how many entries of the input a block rotates; null: 32, or as
            `r` says.
        block_share: whether all blocks of a module are one.
        use_cayley_neumann: whether a series stands for the inverse in Cayley's
            transform; it is faster, and orthogonal for small angles only.
        num_cayley_neumann_terms: how many of its terms are formed.

    Raises:
        InputError: a number cannot be used, or both a size and a number are said.
    """
    del key  # nothing is random
    size = 0 if r and oft_block_size is None else oft_block_size
    size = 32 if size is None else size
    _check(r, size, num_cayley_neumann_terms)
    *layers, d_in, _ = base.shape
    blocks = _nearest(d_in, r) if r else d_in // _nearest(d_in, size)
    count = 1 if block_share else blocks
    return OFT(
        base=base,
        skew=jnp.zeros((*layers, _entries(d_in // blocks), count)),
        scale=jnp.ones(tuple(layers), jnp.float32),
        use_cayley_neumann=use_cayley_neumann,
        num_cayley_neumann_terms=num_cayley_neumann_terms,
        block_share=block_share,
        r=r,
        oft_block_size=size,
    )


def size_of(entries: int) -> int:
    """The size of the blocks that so many entries above the diagonal belong to."""
    return round((1 + (1 + 8 * entries) ** 0.5) / 2)


def _check(r: int, size: int, terms: int) -> None:
    problems = []
    if r < 0 or size < 0 or not (r or size):
        problems.append(
            f"adapter.oft_block_size: found {size} and adapter.r {r}; one of them must "
            "be 1 or more"
        )
    elif r and size:
        problems.append(
            f"adapter.r: found {r} and adapter.oft_block_size {size}; each follows "
            "from the other: leave one out"
        )
    if terms < 1:
        problems.append(
            f"adapter.num_cayley_neumann_terms: found {terms}; it must be 1 or more"
        )
    if problems:
        raise InputError(*problems)


def _entries(size: int) -> int:
    return size * (size - 1) // 2


def _nearest(whole: int, wanted: int) -> int:
    """The divisor of `whole` that is nearest to `wanted`, the smaller one of two."""
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    return min(divisors, key=lambda n: (abs(n - wanted), n))


def _skew_symmetric(entries: Array) -> Array:
    """(*layers, blocks, size, size) of (*layers, entries, blocks)."""
    size = size_of(entries.shape[-2])
    rows, columns = np.triu_indices(size, 1)
    place = np.zeros((size, size), np.int32)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    sign = np.sign(np.arange(size) - np.arange(size)[:, None]).astype(np.float32)
    if not len(rows):
        return jnp.zeros((*entries.shape[:-2], entries.shape[-1], size, size))
    whole = jnp.swapaxes(entries, -1, -2)[..., place.reshape(-1)]
    return whole.reshape(*whole.shape[:-1], size, size) * sign


def _series(q: Array, terms: int) -> Array:
    """2Q + 2Q^2 + ... + Q^(terms - 1): of PEFT's terms all but the first, I."""
    if terms < 3:
        return 2 * q if terms == 2 else jnp.zeros_like(q)
    power = q @ q
    total = 2 * q + 2 * power
    for _ in range(3, terms - 1):
        power = power @ q
        total = total + 2 * power
    return total + power @ q


@jax.custom_jvp
def _inverse_less_one(q: Array) -> Array:
    """(I + Q)^-1 - I, of a stack of matrices."""
    size = q.shape[-1]
    inverse = one_by_one(lambda m: jnp.linalg.inv(m + jnp.eye(size)))
    flat = jax.vmap(inverse)(q.reshape(-1, size, size))
    return flat.reshape(q.shape) - jnp.eye(size)


@_inverse_less_one.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (q,), (change,) = primals, tangents
    less = _inverse_less_one(q)
    inverse = less + jnp.eye(q.shape[-1])
    return less, -inverse @ change @ inverse

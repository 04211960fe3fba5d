"""Single tokens that train: rows of an embedding or columns of a head."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array
from jaxtyping import Float, Float32, Int

from jaxpeft import kernel as kernels
from jaxpeft.kernel import Axes


@struct.dataclass
class Tokens:
    """A table of tokens in which the vectors of some of them are replaced by others.

    It is PEFT's `TrainableTokensLayer`: what trains are the vectors themselves and no
    differences from the base's.

    Attributes:
        base: an embedding, (vocab, d), or a head, (d, vocab); frozen.
        rows: (n, d) float32, the vectors that train.
        indices: (n,) int32, the tokens that they are of, ascending.
        is_head: whether `base` is a head.
        tied: whether a head that shares this embedding has these vectors too.
    """

    base: Any
    rows: Array
    indices: Array
    is_head: bool = struct.field(pytree_node=False, default=False)
    tied: bool = struct.field(pytree_node=False, default=False)

    TRAINABLE = ("rows",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the base."""
        return kernels.dtype_of(self.base)

    @property
    def T(self) -> "Tokens":
        """The transpose: an embedding as a head."""
        return dataclasses.replace(self, base=self.base.T, is_head=not self.is_head)

    def __rmatmul__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
        if not self.is_head:
            return x @ self.dense().astype(x.dtype)
        y = x @ self.base
        own = x @ self.rows.astype(x.dtype).T
        return y.at[..., self.indices].set(
            own.astype(y.dtype), unique_indices=True, indices_are_sorted=True
        )

    def __getitem__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
        """The vectors of tokens, of an embedding; in its dtype."""
        last = self.indices.shape[0] - 1
        place = jnp.minimum(jnp.searchsorted(self.indices, tokens), last)
        found = (self.indices[place] == tokens)[..., None]
        beneath = self.base[tokens]
        return jnp.where(found, self.rows[place].astype(beneath.dtype), beneath)

    def dense(self) -> Float32[Array, "..."]:
        """The float32 table, or the head's matrix, with the vectors in their places."""
        whole = kernels.dense(self.base)
        if self.is_head:
            return whole.at[:, self.indices].set(self.rows.T)
        return whole.at[self.indices].set(self.rows)

    def axes(self, base: Axes) -> "Tokens":
        """The logical axes: the vectors follow the base's width, tokens are whole.

        Args:
            base: the logical axes of the base, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        width = base[0] if self.is_head else base[1]
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            rows=(None, width),
            indices=(None,),
        )


def tokens_of(
    base: Any, indices: tuple[int, ...], *, is_head: bool = False, tied: bool = False
) -> Tokens:
    """The node whose vectors are still the base's own: nothing changes at first.

    Args:
        base: an embedding, (vocab, d), or a head, (d, vocab).
        indices: the tokens, each once, in any order.
        is_head: whether `base` is a head.
        tied: whether a head that shares the embedding has the vectors too.
    """
    chosen = jnp.asarray(sorted(indices), jnp.int32)
    rows = base[:, chosen].T if is_head else base[chosen]
    return Tokens(base, jnp.array(rows, jnp.float32), chosen, is_head, tied)

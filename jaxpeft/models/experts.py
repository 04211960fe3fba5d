"""Mixtures of experts: every token goes to a few MLPs of a layer, and none is dropped.

The pairs (token, expert) are sorted by expert, and each expert's are padded to whole
blocks of rows. So every block meets one kernel, of whatever kind it is, and what is
computed is that of the chosen experts, not of all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Float32, Int32

from jaxpeft import tree

MOST_ROWS = 512  # of a block


class Groups(NamedTuple):
    """Where each pair of a token and an expert stands among the rows of the blocks.

    Attributes:
        slots: (tokens, k) int32, the row of each pair.
        pairs: (blocks * rows,) int32, the pair of each row, counted along `slots`;
            beyond all where a row is empty.
        experts: (blocks,) int32, the expert of each block's rows.
    """

    slots: Array
    pairs: Array
    experts: Array


def route(
    logits: Float[Array, "tokens experts"], per_token: int, normalized: bool
) -> tuple[Float32[Array, "tokens k"], Int32[Array, "tokens k"]]:
    """The weights and the numbers of the experts that each token goes to.

    Args:
        logits: the router's, (tokens, experts).
        per_token: how many experts a token goes to, those of the largest logits.
        normalized: whether a token's weights sum to 1.

    Returns:
        The weights, (tokens, per_token) float32, which are the experts' probabilities
        among all or, if normalized, among the chosen; and their numbers, of that
        shape, int32.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, per_token)
    if normalized:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return weights, chosen


def group(chosen: Int32[Array, "tokens k"], count: int) -> Groups:
    """The order in which experts work: by expert, each one's pairs in whole blocks.

    Args:
        chosen: (tokens, k) int32, the experts that each token goes to, below `count`.
        count: of experts.
    """
    pairs = chosen.size
    rows = _block_rows(pairs, count)
    blocks = (pairs + count * (rows - 1)) // rows  # enough however they are spread
    expert = chosen.reshape(-1)
    sizes = jnp.bincount(expert, length=count)
    ends = jnp.cumsum(-(-sizes // rows))  # in blocks
    order = jnp.argsort(expert, stable=True)
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]]) * rows
    within = jnp.arange(pairs) - (jnp.cumsum(sizes) - sizes)[expert[order]]
    slots = starts[expert[order]] + within
    experts = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
    return Groups(
        jnp.zeros_like(slots).at[order].set(slots).reshape(chosen.shape),
        jnp.full(blocks * rows, pairs).at[slots].set(order),
        jnp.minimum(experts, count - 1),  # those at the end may be empty
    )


def _block_rows(pairs: int, experts: int) -> int:
    """A power of two near half of an expert's share of the pairs.

    Larger blocks read each kernel less often, smaller ones leave fewer rows empty.
    """
    share = max(pairs // (2 * experts), 1)
    return min(1 << (share.bit_length() - 1), MOST_ROWS)


def dispatch(
    x: Float[Array, "tokens width"], groups: Groups
) -> Float[Array, "blocks rows width"]:
    """The tokens as the rows of the blocks, zeros where a row is empty.

    Args:
        x: (tokens, width).
        groups: where each token goes.

    Returns:
        (blocks, rows, width) in x's dtype.
    """
    k, blocks = groups.slots.shape[1], groups.experts.shape[0]
    rows = _taken(x, groups.pairs // k, groups.slots)
    return rows.reshape(blocks, -1, x.shape[1])


def collect(
    y: Float[Array, "blocks rows width"],
    weights: Float[Array, "tokens k"],
    groups: Groups,
) -> Float[Array, "tokens width"]:
    """The results of each token's experts, weighed and summed in float32.

    Args:
        y: what the experts give, (blocks, rows, width).
        weights: of each token's experts, (tokens, k).
        groups: where each token went.

    Returns:
        (tokens, width) in y's dtype.
    """
    rows = _taken(y.reshape(-1, y.shape[-1]), groups.slots, groups.pairs[:, None])
    return jnp.einsum("tk,tkd->td", weights, rows.astype(jnp.float32)).astype(y.dtype)


@jax.custom_vjp
def _taken(x: Array, index: Array, back: Array) -> Array:
    """`x[index]`, zeros where that is beyond x.

    back: (len(x), n), where in the flat index each row of x went. So the backward pass
    gathers, too, and has nothing to scatter.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _taken_forward(x: Array, index: Array, back: Array) -> tuple[Array, Array]:
    return _taken(x, index, back), back


def _taken_backward(back: Array, dy: Array) -> tuple[Array, None, None]:
    rows = dy.reshape(-1, dy.shape[-1]).at[back].get(mode="fill", fill_value=0)
    return jnp.sum(rows, axis=1), None, None


_taken.defvjp(_taken_forward, _taken_backward)


@jax.custom_vjp
def product(
    x: Float[Array, "blocks rows d_in"], kernel: Any, experts: Int32[Array, " blocks"]
) -> Float[Array, "blocks rows d_out"]:
    """`x @ kernel` of each block with its expert's kernel.

    One kernel at a time is read, and the backward pass forms gradients of those leaves
    alone that somebody wants.

    Args:
        x: (blocks, rows, d_in).
        kernel: (experts, d_in, d_out), of any kind.
        experts: (blocks,) int32, the expert of each block.

    Returns:
        (blocks, rows, d_out).
    """
    return _product(x, kernel, experts)


def _product(x: Array, kernel: Any, experts: Array) -> Array:
    def body(_: None, block: tuple[Array, Array, Array]) -> tuple[None, Array]:
        rows, expert, number = block
        return None, rows @ _of_expert(kernel, expert, number)

    blocks = (x, experts, jnp.arange(experts.shape[0]))
    return jax.lax.scan(body, None, blocks)[1]


def _of_expert(kernels: Any, expert: Array, block: Array) -> Any:
    """One expert's kernel; each block has a dropout key of its own."""

    def pick(leaf: Array) -> Array:
        one = jax.lax.dynamic_index_in_dim(leaf, expert, keepdims=False)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(one, block)
        return one

    return jax.tree.map(pick, kernels)


def _product_forward(x: Any, kernel: Any, experts: Any) -> tuple[Array, tuple]:
    wanted = jax.tree.map(lambda leaf: leaf.perturbed, kernel, is_leaf=_is_argument)
    values = jax.tree.map(lambda leaf: leaf.value, kernel, is_leaf=_is_argument)
    trained, fixed = tree.partition(values, wanted)
    y = _product(x.value, values, experts.value)
    return y, (x.value, trained, fixed, experts.value)


def _is_argument(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _product_backward(residuals: tuple, dy: Any) -> tuple:
    x, trained, fixed, experts = residuals

    def body(sums: Any, block: tuple) -> tuple[Any, Array]:
        rows, drows, expert, number = block

        def forward(rows: Array, mine: Any) -> Array:
            others = _of_expert(fixed, expert, number)
            return rows @ tree.combine(mine, others)

        _, back = jax.vjp(forward, rows, _of_expert(trained, expert, number))
        drows, dmine = back(drows)
        sums = jax.tree.map(
            lambda s, g: s.at[expert].add(g.astype(s.dtype)), sums, dmine
        )
        return sums, drows

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
    blocks = (x, dy, experts, jnp.arange(experts.shape[0]))
    sums, dx = jax.lax.scan(body, zeros, blocks)
    return dx, jax.tree.map(lambda s, leaf: s.astype(leaf.dtype), sums, trained), None


product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)

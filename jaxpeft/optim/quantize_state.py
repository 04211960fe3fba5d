"""Any optimizer with its state in 8 bits, and which tensors that is good for."""

import dataclasses
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxpeft import tree
from jaxpeft.optim.explicit import beside, placed
from jaxpeft.optim.ranges import check_pattern
from jaxpeft.quant import Blockwise, blockwise, quantize

# The fields in which optax, torch and this library keep what is never negative.
UNSIGNED = (
    "nu|nu_max|v|v_row|v_col|row|column|exp_avg_sq(_row|_col)?|max_exp_avg_sq|"
    "sum_of_squares|second_moment"
)
# Prodigy's start, and the point that schedule-free steps from.
COPIES = "params0|z"


class Selection(NamedTuple):
    """Which tensors have a state in few bits; the others keep theirs in float32.

    Attributes:
        block_size: elements to a scale.
        min_quantized_size: the elements that a tensor has at least, each layer of a
            stack being one tensor.
        float32_names: a regular expression for the whole dotted names of leaves that
            keep float32 all the same, such as embeddings; None: no leaf does.
    """

    block_size: int
    min_quantized_size: int
    float32_names: str | None

    def check(self, bits: int = 8) -> "Selection":
        """The selection itself, once its values are found to make sense.

        Args:
            bits: the bits of a code, 8 or 4.

        Raises:
            InputError: for values that make no sense.
        """
        blockwise.check(self.block_size, self.min_quantized_size, bits)
        check_pattern("float32_names", self.float32_names)
        return self

    def takes(self, size: int, name: str) -> bool:
        """Whether a tensor is quantized.

        Args:
            size: its number of elements.
            name: the dotted name of its leaf.
        """
        pattern = self.float32_names
        named = pattern is not None and re.fullmatch(pattern, name)
        return size >= self.min_quantized_size and not named


def quantize_state(
    tx: optax.GradientTransformation,
    *,
    block_size: int = 256,
    min_quantized_size: int = 4096,
    float32_names: str | None = None,
    unsigned: str = UNSIGNED,
    copies: str = COPIES,
) -> optax.GradientTransformationExtraArgs:
    """`tx` with the float arrays of its state in 8 bits between the updates.

    An update decodes the whole state, does that of `tx` and encodes the result, so that
    one more state in float32 exists meanwhile: what is saved are the bytes that stay
    and are stored. The optimizers of this library with 8 bits in their names go through
    a tensor in parts instead.

    State: that of `tx` with a `Blockwise` in the place of each float array of at least
    `min_quantized_size` elements, 1.016 bytes an element. Integers, keys, scalars and
    smaller arrays stay. Blocks are those of bitsandbytes: of the flattened array; a
    stack of layers is one array, whose blocks cross layers where the block size does
    not divide the last axis.

    Args:
        tx: any optax transformation; the keyword arguments of an update reach it.
        block_size: elements to a scale.
        min_quantized_size: arrays with fewer elements stay.
        float32_names: a regular expression for the names of parameters whose arrays
            stay. It must match the dotted name of the array in the state, or what is
            left of it without its first parts.
        unsigned: a regular expression for the whole names of the fields whose arrays
            are never negative; they get the unsigned code book, the others the signed
            one. Only fields of named tuples and dataclasses count, so that parameters
            may have any names in dictionaries. A negative number in such an array would
            become zero: pass "" if a field of yours has such a name.
        copies: a regular expression for the whole names of the fields that hold copies
            of the parameters, from which small steps are to be told apart: these stay,
            too.

    Raises:
        InputError: for sizes that make no sense and for what is no regular expression.
    """
    select = Selection(block_size, min_quantized_size, float32_names).check()
    check_pattern("unsigned", unsigned)
    check_pattern("copies", copies)
    tx = optax.with_extra_args_support(tx)

    def encoded(path: tuple, box: Any) -> Any:
        x = tree.opened(box)
        if not _is_float(x) or not _takes(select, x, path):
            return box
        fields = [k.name for k in path if isinstance(k, jax.tree_util.GetAttrKey)]
        if any(re.fullmatch(copies, name) for name in fields):
            return box
        positive = any(re.fullmatch(unsigned, name) for name in fields)
        short = beside(partial(quantize, signed=not positive, block_size=block_size), x)
        return dataclasses.replace(short, codes=tree.boxed(short.codes, box))

    def all_encoded(state: Any) -> Any:
        return jax.tree_util.tree_map_with_path(encoded, state, is_leaf=tree.is_box)

    def init(params: Any) -> Any:
        return all_encoded(tx.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        whole = jax.tree.map(_decoded, state, is_leaf=_is_quantized)
        updates, whole = tx.update(updates, whole, params, **extra)
        return updates, all_encoded(whole)

    return optax.GradientTransformationExtraArgs(init, update)


def _takes(select: Selection, x: Array, path: tuple) -> bool:
    parts = tree.path_name(path).split(".")
    names = (".".join(parts[i:]) for i in range(len(parts)))
    return all(select.takes(x.size, name) for name in names)


def _is_float(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)


def _is_quantized(x: Any) -> bool:
    return isinstance(x, Blockwise)


def _decoded(x: Any) -> Any:
    if not _is_quantized(x):
        return x
    bare = dataclasses.replace(
        x, codes=tree.opened(x.codes), scales=tree.opened(x.scales)
    )
    whole = placed(Blockwise.dequantize, lambda: bare.codes, bare)
    return tree.boxed(whole, x.codes)

"""The leaves that an optimizer is given: in boxes, masked, and of which dtype."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import tree
from jaxpeft.errors import InputError


def check_real(params: Any) -> None:
    """Refuses complex parameters, of which float32 would keep the real part alone.

    Args:
        params: the tree of parameters.

    Raises:
        InputError: with the remedy, optax's wrapper that takes the two parts apart.
    """
    for name, p in tree.named_weights(params):
        if jnp.issubdtype(p.dtype, jnp.complexfloating):
            raise InputError(
                f"{name}: found {p.dtype}; optimizers take real parameters: use "
                "optax.contrib.split_real_and_imaginary(tx) for complex ones"
            )


def decaying(mask: Any, params: Any) -> Any:
    """A tree of booleans like the parameters: which leaves decay.

    A tree that can be called, as a module is in some libraries, is a tree all the same.

    Args:
        mask: what an optimizer was given: a tree of booleans, or of whole branches', a
            function from the parameters to one, or None for all.
        params: the tree of parameters.
    """
    if mask is None:
        mask = True
    is_function = isinstance(mask, partial) or jax.tree_util.all_leaves([mask])
    if callable(mask) and is_function:
        mask = mask(params)
    return jax.tree.broadcast(mask, params)


def without_boxes(state: Any) -> Any:
    """The state with arrays in the places of the boxes around them."""
    return jax.tree.map(tree.opened, state, is_leaf=tree.is_box)


def boxed(state: Any, like: Any) -> Any:
    """The state of a tensor, those of its arrays in boxes that have its shape."""
    if not tree.is_box(like):
        return state
    shape = tree.opened(like).shape
    return jax.tree.map(lambda x: tree.boxed(x, like) if x.shape == shape else x, state)

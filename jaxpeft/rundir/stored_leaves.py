"""The leaves of a state as a checkpoint names, describes and restores them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxpeft.errors import InputError


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves by their path, in the tree's order.

    Orbax is given these in place of the tree: it would join a tree's keys with dots, so
    that `a.b` and `a` over `b` become one, and it has its own ideas of named tuples.

    Args:
        state: any pytree.

    Returns:
        {path, its keys joined by slashes: leaf}.

    Raises:
        ValueError: two leaves have the same path.
    """
    paths = jax.tree_util.tree_leaves_with_path(state)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in paths
    }
    if len(named) < len(paths):
        raise ValueError("two leaves of the state have the same path")
    return named


def layout(leaves: dict[str, Any]) -> dict[str, str]:
    """The dtype and shape of each leaf, such as `float32[4,16]`, by its path."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in leaves.items()
    }


def compare_layout(folder: Path, stored: dict[str, str], asked: dict[str, str]) -> None:
    """Checks that two layouts agree: Orbax would cast in silence.

    Args:
        folder: the checkpoint, for the message.
        stored: the layout in the checkpoint.
        asked: the layout of this run's state.

    Raises:
        InputError: they differ; the first ten differences are named.
    """
    problems = [
        f"{name}: {stored.get(name, 'absent')} in the checkpoint, "
        f"{asked.get(name, 'absent')} in this run"
        for name in {**stored, **asked}
        if stored.get(name) != asked.get(name)
    ]
    if problems:
        shown = problems[:10]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise InputError(
            f"checkpoint {folder} holds another state than this run's; go back to the "
            "adapter, optimizer and model that it was saved with, or choose a new "
            "output_dir",
            *shown,
        )


def abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape, dtype and sharding of a leaf to be read.

    Args:
        leaf: an array or a `jax.ShapeDtypeStruct`; one without a sharding goes to the
            first device of this process.
    """
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def empty_leaf(leaf: Any) -> jax.Array:
    """An array without elements, which Orbax declines to store."""
    # Compiled, since device_put reaches only the devices of this process.
    make = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=_sharding(leaf))
    return make(leaf.shape, leaf.dtype)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    given = getattr(leaf, "sharding", None)
    return given or SingleDeviceSharding(jax.local_devices()[0])

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
    """Each leaf's dtype and shape, such as `float32[4,16]`."""
    return {
        name: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for name, leaf in leaves.items()
    }


def compare_layout(folder: Path, stored: dict[str, str], asked: dict[str, str]) -> None:
    """Raise InputError unless two layouts agree: Orbax would cast in silence."""
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
    """Shape, dtype and sharding of a leaf to be read; without one, the first device."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def empty_leaf(leaf: Any) -> jax.Array:
    """An array without elements, which Orbax declines to store."""
    # Compiled, since device_put reaches only the devices of this process.
    make = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=_sharding(leaf))
    return make(leaf.shape, leaf.dtype)


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    given = getattr(leaf, "sharding", None)
    return given or SingleDeviceSharding(jax.local_devices()[0])

"""Parameter trees: names, splitting by a mask, and sizes."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any
OWN = ".own"  # what trains of a weight that does so in part (`adapters.Partly`)


def path_name(path: tuple) -> str:
    """The dotted name of a key path: `("model", "norm")` gives "model.norm"."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def named_leaves(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[str, Any]]:
    """The pairs (dotted name, leaf) of every leaf, in the order of `jax.tree.leaves`.

    Args:
        tree: any tree.
        is_leaf: as of `jax.tree.leaves`: what else counts as a leaf.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(path_name(path), leaf) for path, leaf in leaves]


def named_weights(tree: PyTree) -> list[tuple[str, Any]]:
    """`named_leaves` of what trains, a weight's own part under the weight's name.

    So optimizers know it by one name whether all of the model trains or some of it, and
    whether it comes in a box or without.
    """
    named = named_leaves(tree, is_leaf=is_box)
    return [(name.removesuffix(OWN), opened(leaf)) for name, leaf in named]


def is_box(x: Any) -> bool:
    """Whether `x` is a node around one array, its `value`, as Flax's variables are.

    In NNX and, with partitioned parameters, in Linen a tree holds boxes in the places
    of arrays, and NNX takes them off between the init of an optimizer and its update.
    """
    if x is None or isinstance(x, dict | list | tuple | jax.Array):
        return False
    children, _ = jax.tree_util.tree_flatten_with_path(
        x, is_leaf=lambda child: child is not x
    )
    if len(children) != 1:
        return False
    path, child = children[0]
    key = jax.tree_util.GetAttrKey("value")
    return path == (key,) and jax.tree_util.all_leaves([child])


def opened(x: Any) -> Any:
    """The array in a box; anything else is returned as it is."""
    return jax.tree.leaves(x)[0] if is_box(x) else x


def boxed(x: Any, like: Any) -> Any:
    """`x` in a box such as `like` is; `x` itself where that is none."""
    return jax.tree.structure(like).unflatten([x]) if is_box(like) else x


def map_named(
    function: Callable[[str, Any], Any],
    tree: PyTree,
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """`jax.tree.map` whose function also gets the dotted name of each leaf.

    Args:
        function: (dotted name, leaf) -> what takes the leaf's place.
        tree: any tree.
        is_leaf: as of `jax.tree.map`: what else counts as a leaf.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree, is_leaf=is_leaf
    )


def partition(tree: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a tree into (where the mask is true, where it is false).

    Both results keep the structure, with `None` in each other's places, so that only
    the first one meets `grad`, the optimizer and the checkpoint. Inverse: `combine`.

    Args:
        tree: any tree.
        mask: a bool for each of its leaves.
    """
    true = jax.tree.map(lambda m, x: x if m else None, mask, tree)
    false = jax.tree.map(lambda m, x: None if m else x, mask, tree)
    return true, false


def combine(*trees: PyTree) -> PyTree:
    """Fills the `None` holes of the first tree from the others: undoes `partition`.

    Args:
        trees: of one structure, in the order of precedence.
    """

    def first(*leaves: Any) -> Any:
        return next((x for x in leaves if x is not None), None)

    return jax.tree.map(first, *trees, is_leaf=lambda x: x is None)


def count(tree: PyTree) -> int:
    """The number of elements in all leaves (arrays or abstract shapes)."""
    return sum(int(np.prod(x.shape, dtype=np.int64)) for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """The bytes of all leaves (arrays or abstract shapes)."""
    return sum(
        int(np.prod(x.shape, dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def digest(tree: PyTree) -> str:
    """A hexadecimal blake2b over names, dtypes, shapes and bits of all leaves."""
    total = hashlib.blake2b(digest_size=16)
    for name, leaf in named_leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        values = np.ascontiguousarray(to_host(leaf))
        total.update(f"{name} {values.dtype} {values.shape} ".encode())
        total.update(values.tobytes())
    return total.hexdigest()


def to_host(x: Any) -> np.ndarray:
    """The whole of an array, in every process: what others hold of it is fetched.

    Then each process of a run must ask for it, and in the same order.
    """
    split = isinstance(x, jax.Array) and not x.is_fully_addressable
    if split and not x.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def walk(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The pairs (dotted name, value) of all that is no mapping, nodes kept whole.

    Unlike `named_leaves` it does not look into adapters or quantized weights: each
    stands under the name of the weight whose place it took.

    Args:
        tree: nested mappings.
        prefix: put before every name.
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from walk(value, name + ".")
        else:
            yield name, value


def replace(tree: Mapping, changes: Mapping[str, Any]) -> dict:
    """A copy of nested mappings with the values at the dotted names exchanged.

    Args:
        tree: nested mappings.
        changes: {dotted name: new value}; names that the tree has not are passed over.
    """

    def visit(node: Mapping, prefix: str) -> dict:
        return {
            key: visit(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else changes.get(f"{prefix}{key}", value)
            for key, value in node.items()
        }

    return visit(tree, "")

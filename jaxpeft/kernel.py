"""What stands in a params tree where a matrix stood: anything with `x @ kernel`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import tree

Axes = tuple[str | None, ...]


@runtime_checkable
class Kernel(Protocol):
    """A weight of shape (*layers, d_in, d_out) that a model multiplies from the left.

    JAX arrays are kernels; adapters and quantized weights are `flax.struct`
    dataclasses with these members. `x @ kernel` reaches `__rmatmul__` because JAX
    arrays return `NotImplemented` for operands that they do not know.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __rmatmul__(self, x: Array) -> Array: ...

    def dense(self) -> Array:
        """The matrix in float32: what `x @ kernel` multiplies with."""
        ...

    def axes(self, base: Axes) -> Any:
        """Logical axes in the kernel's own structure; `base` are the matrix's."""
        ...


def is_node(x: Any) -> bool:
    """Whether `x` is a kernel of ours, an adapter or a quantized weight."""
    return hasattr(x, "dense") and hasattr(x, "__rmatmul__")


def dense(kernel: Any) -> Array:
    """The float32 matrix of a kernel or an array, shape (*layers, d_in, d_out)."""
    if is_node(kernel):
        return kernel.dense()
    return jnp.asarray(kernel, jnp.float32)


def linear(x: Array, kernel: Any, bias: Any = None) -> Array:
    """`x @ kernel + bias`, in x's dtype; a kernel may have `linear` of its own.

    Those do that change what comes out of a module, its bias included.
    """
    if bias is None:
        return x @ kernel
    if hasattr(kernel, "linear"):
        return kernel.linear(x, bias)
    y = x @ kernel
    return y + bias.astype(y.dtype)


def axes_of(kernel: Any, base: Axes) -> Any:
    """Logical axes of a kernel in its own structure; those of an array are `base`."""
    return kernel.axes(base) if is_node(kernel) else base


def product(subscripts: str, left: Array, right: Array) -> Array:
    """`jnp.einsum` of two arrays of one dtype, summed and returned in float32."""
    if jax.default_backend() == "cpu":
        # XLA has no such product of 16-bit operands for every shape there.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def nodes(params: Mapping) -> dict[str, Any]:
    """{dotted name: kernel} for the adapters and quantized weights in `params`."""
    return {name: leaf for name, leaf in tree.walk(params) if is_node(leaf)}


def layer(node: Any, index: int | Array) -> Any:
    """One layer of a stacked kernel; what its layers share goes along whole.

    A node that knows its layers by number (`of_layer`) gives the weight itself.
    """
    if not is_node(node):
        return node[index]
    if hasattr(node, "of_layer"):
        return node.of_layer(index)
    shared = {name: getattr(node, name) for name in getattr(node, "SHARED", ())}
    own = dataclasses.replace(node, **dict.fromkeys(shared))
    return dataclasses.replace(jax.tree.map(lambda x: x[index], own), **shared)


def shared_apart(layers: Mapping) -> tuple[Mapping, Callable[[Mapping], Mapping]]:
    """(what has a layer axis, the function that completes one layer of it).

    For a scan over layers: what a kernel names in `SHARED` stays outside of it.
    """
    shared = {
        name: {field: getattr(node, field) for field in node.SHARED}
        for name, node in nodes(layers).items()
        if hasattr(node, "SHARED")
    }
    if not shared:
        return layers, lambda layer: layer
    found = nodes(layers)
    apart = {
        name: dataclasses.replace(found[name], **dict.fromkeys(fields))
        for name, fields in shared.items()
    }

    def complete(layer: Mapping) -> Mapping:
        own = nodes(layer)
        return tree.replace(
            layer,
            {
                name: dataclasses.replace(own[name], **fields)
                for name, fields in shared.items()
            },
        )

    return tree.replace(layers, apart), complete


def with_dropout(params: Mapping, key: Array) -> Mapping:
    """`params` with a dropout key in every adapter that drops; without it none drops.

    Keys depend on `key` and on the adapter's place alone, so that a step repeats
    exactly when its key is a function of the step.
    """
    changes = {
        name: node.with_key(jax.random.fold_in(key, index))
        for index, (name, node) in enumerate(sorted(nodes(params).items()))
        if getattr(node, "dropout", 0.0) > 0.0
    }
    return tree.replace(params, changes) if changes else params


def dropout(x: Array, rate: float, key: Array) -> Array:
    """`x` with entries zeroed with probability `rate` and the rest over `1 - rate`."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))

"""What stands in a params tree where a matrix stood: anything with `x @ kernel`.

Three protocols say all that an adapter or a storage can tell of itself: `Kernel` is
what each must have, `KernelExtras` what it may add, one member at a time, and
`LayerwiseKernel` what belongs together where some layers of a stack are apart. No class
names them: having the members is enough. The functions below read them; nobody else
asks a node which members it has.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import hardware, tree

Axes = tuple[str | None, ...]

# In the names of the products that form an adapter's gradients, which are float32
# whatever the model is: `plan` knows them by it.
ADAPTER_GRADIENT = "adapter_gradient"


@runtime_checkable
class Kernel(Protocol):
    """A weight of shape (*layers, d_in, d_out) that a model multiplies from the left.

    JAX arrays are kernels; adapters and quantized weights are `flax.struct`
    dataclasses with these members. `x @ kernel` reaches `__rmatmul__` because JAX
    arrays return `NotImplemented` for operands that they do not know.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        ...

    def __rmatmul__(self, x: Array) -> Array:
        """The product `x @ kernel` of one layer.

        Args:
            x: (..., d_in).

        Returns:
            (..., d_out) in x's dtype.
        """
        ...

    def dense(self) -> Array:
        """The matrix in float32, of its shape: what `x @ kernel` multiplies with.

        Raises:
            InputError: with what to do instead, where there is no such matrix.
        """
        ...

    def axes(self, base: Axes) -> Any:
        """The logical axes of the kernel, in its own structure.

        Args:
            base: the names of the matrix's axes, one each or None.

        Returns:
            In the place of each array a tuple of as many names as it has axes.
        """
        ...


class KernelExtras(Protocol):
    """The members that a kernel may have besides, and what holds where it has them not.

    Nothing is inherited from this class: `_said` takes from it what a node lacks.

    Attributes:
        TRAINABLE: the fields of its own that train, such as ("a", "b"), all arrays of a
            float dtype. None: it is no adapter but a storage, of which nothing trains.
        SHARED: the fields without a layer axis, of which all layers of a stack have the
            same.
        base: the kernel that an adapter stands around, an array or a node, of the same
            shape. None: it stands around nothing, but in a weight's place.
        dtype: the dtype of the weights beneath, in which a merged matrix is stored.
            None: that of the base, or float32 without one.
        dropout: the probability with which entries of x are zeroed in training. None:
            it knows no dropout, and its configuration no such key.
        tied: of an embedding: a head that shares its table reads what trains in it.
            False: such a head reads the base beneath.
    """

    TRAINABLE: tuple[str, ...] | None = None
    SHARED: tuple[str, ...] = ()
    base: Any = None
    dtype: Any = None
    dropout: float | None = None
    tied: bool = False

    def with_key(self, key: Array | None) -> Any:
        """The same node with dropout by a key, or without dropout.

        Whatever says a `dropout` has it.

        Args:
            key: one key, of which (*layers,) keys are made; None: nothing drops.
        """
        raise NotImplementedError(f"{type(self).__name__} drops and has no with_key")

    def linear(self, x: Array, bias: Array) -> Array:
        """A whole module's output, for the nodes that change its bias with it.

        Args:
            x: (..., d_in).
            bias: (d_out,).

        Returns:
            (..., d_out) in x's dtype.
        """
        y = x @ self  # type: ignore[operator]
        return y + bias.astype(y.dtype)

    def dense_bias(self, bias: Array) -> Array | None:
        """The bias that goes with `dense`, float32 like it; None: the one there is.

        Args:
            bias: (*layers, d_out) float32.
        """
        return None


@runtime_checkable
class LayerwiseKernel(Kernel, Protocol):
    """A kernel that knows the layers of its stack by number, for some of them train.

    Attributes:
        own: (n, d_in, d_out), the layers that train, or a whole weight without layers.
        stack: (layers, d_in, d_out), all as they were; None where all of them train.
    """

    own: Any
    stack: Any

    def of_layer(self, number: int | Array) -> Array:
        """The weight of one layer, (d_in, d_out); its number may be traced."""
        ...

    def trains(self, number: int) -> bool:
        """Whether the layer of that number trains."""
        ...

    def rows(self, first: int, last: int) -> Array:
        """The trained weights of a range of layers, all of which train.

        Args:
            first: the number of the first layer.
            last: the number after that of the last one.
        """
        ...


def is_node(x: Any) -> bool:
    """Whether `x` is a kernel of ours, an adapter or a quantized weight."""
    return hasattr(x, "dense") and hasattr(x, "__rmatmul__")


def is_adapter(x: Any) -> bool:
    """Whether something of `x` itself trains; a storage does not, nor does an array."""
    return is_node(x) and _said(x, "TRAINABLE") is not None


def trainable(kernel: Any) -> dict[str, Any]:
    """The fields that train of a kernel itself, {field: value}; a storage has none."""
    names = (_said(kernel, "TRAINABLE") or ()) if is_node(kernel) else ()
    return {name: getattr(kernel, name) for name in names}


def base_of(kernel: Any) -> Any:
    """The kernel that an adapter stands around; any other kernel, or an array, itself.

    It is itself, too, in a tree of which only what trains is left (`tree.partition`).
    """
    base = getattr(kernel, "base", None) if is_node(kernel) else None
    return kernel if base is None else base


def of_head(table: Any) -> Any:
    """What a head that shares an embedding reads of it, (vocab, d).

    Args:
        table: the embedding, an array or a node.
    """
    return table if _said(table, "tied") else base_of(table)


def dtype_of(kernel: Any) -> Any:
    """The dtype of the weights beneath all adapters; float32 where none says one."""
    while (base := base_of(kernel)) is not kernel:
        kernel = base
    dtype = _said(kernel, "dtype")
    return jnp.float32 if dtype is None else dtype


def dropout_rate(kernel: Any) -> float | None:
    """The rate that a kernel drops at in training; None for one that never could."""
    return _said(kernel, "dropout")


def drops(kernel: Any) -> bool:
    """Whether a kernel drops in training: its rate is above zero."""
    return (dropout_rate(kernel) or 0.0) > 0.0


def dense_bias(kernel: Any, bias: Array) -> Array | None:
    """The bias beside `dense(kernel)`, float32; None where it is the module's own.

    Args:
        kernel: an array or a node.
        bias: (*layers, d_out) float32.
    """
    return _said(kernel, "dense_bias")(bias)


def _said(kernel: Any, name: str) -> Any:
    """A member of `KernelExtras`: the kernel's own, or what holds where it has none."""
    if hasattr(kernel, name):
        return getattr(kernel, name)
    default = getattr(KernelExtras, name)
    return functools.partial(default, kernel) if callable(default) else default


def dense(kernel: Any) -> Array:
    """The float32 matrix of a kernel or an array, shape (*layers, d_in, d_out)."""
    if is_node(kernel):
        return kernel.dense()
    return jnp.asarray(kernel, jnp.float32)


def linear(x: Array, kernel: Any, bias: Any = None) -> Array:
    """`x @ kernel + bias` in x's dtype, or what the kernel says in its place.

    Args:
        x: (..., d_in).
        kernel: an array or a node, (d_in, d_out).
        bias: (d_out,) or None.

    Returns:
        (..., d_out).
    """
    return x @ kernel if bias is None else _said(kernel, "linear")(x, bias)


def axes_of(kernel: Any, base: Axes) -> Any:
    """The logical axes of a kernel in its own structure; an array's are the matrix's.

    Args:
        kernel: an array or a node.
        base: the names of the matrix's axes, one each or None.
    """
    return kernel.axes(base) if is_node(kernel) else base


def product(subscripts: str, left: Array, right: Array) -> Array:
    """`jnp.einsum` of two arrays of one dtype, summed and returned in float32.

    Args:
        subscripts: as of `jnp.einsum`.
        left: the first operand.
        right: the second operand, of the same dtype.
    """
    if hardware.current().platform == "cpu":
        # XLA has no such product of 16-bit operands for every shape there.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(subscripts, left, right, preferred_element_type=jnp.float32)


def nodes(params: Mapping) -> dict[str, Any]:
    """The adapters and quantized weights in `params`, {dotted name: kernel}."""
    return {name: leaf for name, leaf in tree.walk(params) if is_node(leaf)}


def layer(node: Any, index: int | Array) -> Any:
    """One layer of a stacked kernel; what its layers share goes along whole.

    A node that knows its layers by number gives the weight itself.

    Args:
        node: an array or a node whose arrays have a first axis of layers.
        index: the layer's number, which may be traced.
    """
    if not is_node(node):
        return node[index]
    if isinstance(node, LayerwiseKernel):
        return node.of_layer(index)
    shared = _shared(node)
    own = dataclasses.replace(node, **dict.fromkeys(shared))
    return dataclasses.replace(jax.tree.map(lambda x: x[index], own), **shared)


def _shared(node: Any) -> dict[str, Any]:
    """The fields that all layers of a node have in common, {field: value}."""
    return {name: getattr(node, name) for name in _said(node, "SHARED")}


def shared_apart(layers: Mapping) -> tuple[Mapping, Callable[[Mapping], Mapping]]:
    """The layers without what a kernel names in `SHARED`, which stays outside a scan.

    Args:
        layers: nested mappings with stacked kernels.

    Returns:
        (what has a layer axis, the function that completes one layer of it).
    """
    kernels = nodes(layers)
    shared = {
        name: fields for name, node in kernels.items() if (fields := _shared(node))
    }
    if not shared:
        return layers, lambda layer: layer
    apart = {
        name: dataclasses.replace(kernels[name], **dict.fromkeys(fields))
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
    """The params with a dropout key in every adapter that drops.

    Without it none drops. Keys depend on `key` and on the adapter's place alone, so
    that a step repeats exactly when its key is a function of the step.

    Args:
        params: nested mappings.
        key: the key of the step.
    """
    changes = {
        name: _said(node, "with_key")(jax.random.fold_in(key, index))
        for index, (name, node) in enumerate(sorted(nodes(params).items()))
        if drops(node)
    }
    return tree.replace(params, changes) if changes else params


def with_part(params: Mapping, part: Array) -> Mapping:
    """The params with dropout keys of their own for a part of the tokens.

    A key says what is dropped by the place in an array alone, so that parts of the same
    shape would drop the same.

    Args:
        params: nested mappings, after `with_dropout` or without it.
        part: (), the number of the part.
    """
    changes = {
        name: _said(node, "with_key")(jax.random.fold_in(node.key, part))
        for name, node in nodes(params).items()
        if drops(node) and node.key is not None
    }
    return tree.replace(params, changes) if changes else params


def dropout(x: Array, rate: float, key: Array) -> Array:
    """An array with entries zeroed at random, and the rest divided by `1 - rate`.

    Args:
        x: an array of any shape.
        rate: the probability that an entry is zeroed.
        key: decides which.
    """
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))

"""How the weight of a Flax module is a matrix, and how an adapter meets its input."""

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import kernel

# The module itself with another kernel and no bias: (input, kernel) -> output.
Twin = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Contraction:
    """A sum over some axes of the input: Linear, LinearGeneral, Dense, Einsum.

    Attributes:
        equation: An einsum of input and weight; the input may have an ellipsis. Its
            labels say which axes of the weight are inputs, outputs, or (in all three) a
            batch of matrices.
        shape: The weight's shape, without axes of stacked layers before it.
        weight: The name of the module's weight.
    """

    equation: str
    shape: tuple[int, ...]
    weight = "kernel"

    def matrix(self, tensor: Array) -> Array:
        """The weight as a matrix or batch of matrices.

        Args:
            tensor: The weight, (*layers, *shape).

        Returns:
            An array (*layers, *batch, d_in, d_out) of the same dtype.
        """
        batch, inputs, outputs = self._axes()
        layers = tensor.ndim - len(self.shape)
        order = [layers + axis for axis in (*batch, *inputs, *outputs)]
        tensor = jnp.transpose(tensor, (*range(layers), *order))
        return tensor.reshape(*tensor.shape[:layers], *self.matrix_shape())

    def tensor(self, matrix: Array) -> Array:
        """The weight, (*layers, *shape), of a matrix that `matrix` gave."""
        batch, inputs, outputs = self._axes()
        order = (*batch, *inputs, *outputs)
        layers = matrix.ndim - len(self.matrix_shape())
        shape = [self.shape[axis] for axis in order]
        tensor = matrix.reshape(*matrix.shape[:layers], *shape)
        back = [layers + order.index(axis) for axis in range(len(order))]
        return jnp.transpose(tensor, (*range(layers), *back))

    def matrix_shape(self) -> tuple[int, ...]:
        """The shape of the matrix without layers, (*batch, d_in, d_out)."""
        batch, *others = self._axes()
        sizes = [math.prod(self.shape[axis] for axis in axes) for axes in others]
        return (*(self.shape[axis] for axis in batch), *sizes)

    def product(self, node: Any, x: Array, method: Callable[..., Array]) -> Array:
        """The result of a method of an adapter, arranged as the module's output.

        Args:
            node: The adapter, of one layer.
            x: The module's input.
            method: `method(node, rows)`, from rows (..., d_in) of one batch of the
                input to (..., d_out).

        Returns:
            An array of the shape of the module's output.
        """
        left, right, out = self._labels()
        batch, inputs, outputs = (
            "".join(right[axis] for axis in axes) for axes in self._axes()
        )
        dots = "..." if "..." in left else ""
        kept = dots + "".join(c for c in left if c in out and c not in right + ".")
        rows = jnp.einsum(f"{left}->{batch}{kept}{inputs}", x)
        rows = rows.reshape(*rows.shape[: rows.ndim - len(inputs)], -1)
        for _ in batch:
            method = jax.vmap(method)
        y = method(node, rows)
        sizes = [self.shape[right.index(label)] for label in outputs]
        y = y.reshape(*y.shape[:-1], *sizes)
        return jnp.einsum(f"{batch}{kept}{outputs}->{out}", y)

    def update(self, node: Any, x: Array, dtype: Any, twin: Twin) -> Array:
        """What the adapter adds to the module's output.

        Args:
            node: The adapter, of one layer.
            x: The module's input.
            dtype: The dtype of the products.
            twin: Not used by this form.
        """
        return self.product(node, x.astype(dtype), lambda node, rows: node.update(rows))

    def _labels(self) -> tuple[str, str, str]:
        left, right = self.equation.replace(" ", "").split(",")
        right, out = right.split("->")
        return left, right, out

    def _axes(self) -> tuple[list[int], list[int], list[int]]:
        """The axes of the weight that are (batch, input, output)."""
        left, right, out = self._labels()
        both = [i for i, c in enumerate(right) if c in left and c in out]
        inputs = [i for i, c in enumerate(right) if c in left and c not in out]
        outputs = [i for i, c in enumerate(right) if c not in left and c in out]
        return both, inputs, outputs

    def problem(self) -> str:
        """What keeps the weight from being a matrix or batch of them; "" if nothing."""
        _, right, _ = self._labels()
        axes = self._axes()
        once = "." not in right and len(set(right)) == len(right)
        if once and sum(map(len, axes)) == len(right) and axes[1] and axes[2]:
            return ""
        return (
            f"found the equation {self.equation!r}; a low rank needs a weight with "
            "axes of inputs and of outputs, each label once, so leave this module out"
        )


@dataclass(frozen=True)
class Convolution:
    """A convolution whose weight is (*window, in, out), as a matrix (window * in, out).

    As in PEFT, A is a convolution with the same window and B one with a window of 1.

    Attributes:
        shape: The weight's shape, without axes of stacked layers before it.
        groups: The module's `feature_group_count`.
        masked: Whether the module has a mask over its weight.
        weight: The name of the module's weight.
    """

    shape: tuple[int, ...]
    groups: int = 1
    masked: bool = False
    weight = "kernel"

    def problem(self) -> str:
        """What keeps it from having an adapter that can be merged; "" if nothing."""
        if self.groups == 1 and not self.masked:
            return ""
        trait = "a mask" if self.masked else f"feature_group_count {self.groups}"
        return (
            f"found a convolution with {trait}, into whose weight no adapter can be "
            "merged; leave this module out"
        )

    def matrix(self, tensor: Array) -> Array:
        """The weight (*layers, *window, in, out) as (*layers, window * in, out)."""
        layers = tensor.shape[: tensor.ndim - len(self.shape)]
        return tensor.reshape(*layers, *self.matrix_shape())

    def tensor(self, matrix: Array) -> Array:
        """The weight, (*layers, *window, in, out), of a matrix that `matrix` gave."""
        return matrix.reshape(*matrix.shape[:-2], *self.shape)

    def matrix_shape(self) -> tuple[int, ...]:
        """The shape of the matrix without layers, (window * in, out)."""
        return math.prod(self.shape[:-1]), self.shape[-1]

    def update(self, node: Any, x: Array, dtype: Any, twin: Twin) -> Array:
        """What the adapter adds to the module's output.

        Args:
            node: The adapter, of one layer.
            x: The module's input.
            dtype: The dtype of the products.
            twin: The module itself with another kernel and no bias.
        """
        x = x.astype(dtype)

        def low_rank(x: Array, a: Array, b: Array) -> Array:
            window = a.reshape(*self.shape[:-1], node.rank).astype(dtype)
            return (twin(x, window) * node.scale.astype(dtype)) @ b.astype(dtype)

        dropped = x
        if node.key is not None:
            dropped = kernel.dropout(x, node.dropout, node.key)
        update = low_rank(dropped, node.a, node.b)
        if node.start_a is None:
            return update
        return update - low_rank(x, node.start_a, node.start_b)


@dataclass(frozen=True)
class Lookup:
    """An embedding (entries, features): a product with rows of one-hot vectors.

    Attributes:
        shape: The embedding's shape, (entries, features).
        weight: The name of the module's weight.
    """

    shape: tuple[int, ...]
    weight = "embedding"

    def problem(self) -> str:
        """Always "": every embedding is a matrix."""
        return ""

    def matrix(self, tensor: Array) -> Array:
        """The embedding itself, (*layers, entries, features)."""
        return tensor

    def tensor(self, matrix: Array) -> Array:
        """The embedding itself."""
        return matrix

    def matrix_shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (entries, features)."""
        return self.shape

    def update(self, node: Any, x: Array, dtype: Any, twin: Twin) -> Array:
        """What the adapter adds to the entries looked up; nothing is dropped here.

        Args:
            node: The adapter, of one layer.
            x: The indices of the entries.
            dtype: The dtype of the products.
            twin: Not used by this form.
        """
        if self.shape[0] == 1:
            x = jnp.zeros_like(x)  # Flax takes the only entry whatever the index
        low = (jnp.take(node.a, x, axis=0) * node.scale).astype(dtype)
        return low @ node.b.astype(dtype)

    def attend(self, node: Any, query: Array) -> Array:
        """What the adapter adds to the products of queries with all entries.

        Args:
            node: The adapter, of one layer.
            query: The queries, (..., features).

        Returns:
            An array (..., entries) in the queries' dtype.
        """
        low = (query @ node.b.T.astype(query.dtype)) * node.scale.astype(query.dtype)
        return low @ node.a.T.astype(query.dtype)


Form = Contraction | Convolution | Lookup


def over_axes(
    axis: Sequence[int], batch_axes: Sequence[int], shape: Sequence[int]
) -> Contraction:
    """The contraction of LinearGeneral and DenseGeneral.

    Args:
        axis: The axes of the input that are summed over.
        batch_axes: The leading axes of the input that the weight has too.
        shape: The weight's shape, (*batch, *inputs, *outputs).
    """
    ordered = sorted(axis, key=lambda a: (a < 0, a))  # the weight has them in order
    first = max([a + 1 for a in (*ordered, *batch_axes) if a >= 0], default=0)
    last = max([-a for a in ordered if a < 0], default=0)
    labels = iter(string.ascii_letters)
    names = {a: next(labels) for a in (*range(first), *range(-last, 0))}
    outputs = [next(labels) for _ in shape[len(ordered) + len(batch_axes) :]]

    def row(axes: Sequence[int]) -> str:
        return "".join(names[a] for a in axes)

    def kept(axes: Sequence[int]) -> str:
        return row([a for a in axes if a not in (*ordered, *batch_axes)])

    left = f"{row(range(first))}...{row(range(-last, 0))}"
    batch, result = row(batch_axes), "".join(outputs)
    right = batch + row(ordered) + result
    out = f"{batch}{kept(range(first))}...{kept(range(-last, 0))}{result}"
    return Contraction(f"{left},{right}->{out}", tuple(shape))

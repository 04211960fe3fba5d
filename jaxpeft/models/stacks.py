"""The layers of a model as a scan takes them: all in one, or in runs that train alike.

Where some layers train and others do not, a scan over all of them would form gradients
of every layer. Each run of neighbours that train alike is a scan of its own: what lies
below the first one that trains keeps nothing for a backward pass, and has none.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxpeft import kernel, tree
from jaxpeft.devices import host_memory


class Span(NamedTuple):
    """Neighbouring layers: what a scan over them slices, and what completes a slice.

    Attributes:
        stacked: a mapping whose leaves have an axis for these layers, None in the
            place of what does not.
        numbers: (n,) int32, which layers they are.
        complete: the function (one slice of `stacked`, the layer's number) -> the
            weights of that layer, in the device's memory.
    """

    stacked: Mapping
    numbers: Array
    complete: Callable[[Mapping, Array], Mapping]


def whole(layers: Mapping, count: int) -> Span:
    """All layers in one run, whichever of them train.

    Args:
        layers: the params' "layers": stacked weights and the nodes around them.
        count: of layers.
    """
    partly = _partly(layers)
    holes = tree.replace(layers, dict.fromkeys(partly))
    stacked, with_shared = kernel.shared_apart(holes)

    def complete(layer: Mapping, number: Array) -> Mapping:
        # A slice of a stack in the host's memory lies there, too.
        layer = with_shared(host_memory.brought(layer))
        if not partly:
            return layer
        weights = {name: node.of_layer(number) for name, node in partly.items()}
        return tree.replace(layer, weights)

    return Span(stacked, jnp.arange(count), complete)


def spans(layers: Mapping, count: int) -> list[Span]:
    """The layers from the first to the last, in as few runs as train alike.

    Args:
        layers: the params' "layers": stacked weights and the nodes around them.
        count: of layers.
    """
    partly = _partly(layers)
    if not partly:
        return [whole(layers, count)]
    return [_span(layers, partly, *ends) for ends in _ends(partly, count)]


def lengths(layers: Mapping, count: int) -> list[int]:
    """How many layers each run of `spans` has.

    Args:
        layers: as for `spans`.
        count: of layers.
    """
    partly = _partly(layers)
    if not partly:
        return [count]
    return [last - first for first, last in _ends(partly, count)]


def _partly(layers: Mapping) -> dict[str, kernel.LayerwiseKernel]:
    """The nodes of which some layers train."""
    return {
        name: node
        for name, node in kernel.nodes(layers).items()
        if isinstance(node, kernel.LayerwiseKernel)
    }


def _ends(partly: Mapping[str, Any], count: int) -> list[tuple[int, int]]:
    """(first, one beyond the last) of every run."""
    alike = [tuple(node.trains(i) for node in partly.values()) for i in range(count)]
    starts = [i for i in range(count) if i == 0 or alike[i] != alike[i - 1]]
    return list(zip(starts, [*starts[1:], count], strict=True))


def _span(layers: Mapping, partly: Mapping[str, Any], first: int, last: int) -> Span:
    own = {
        name: node.rows(first, last)
        for name, node in partly.items()
        if node.trains(first)
    }
    # Read from the whole stacks by number: a part of one would be a copy.
    frozen = {
        name: partly[name].stack if name in partly else value
        for name, value in tree.walk(layers)
        if name not in own
    }

    def complete(layer: Mapping, number: Array) -> Mapping:
        weights = {name: kernel.layer(value, number) for name, value in frozen.items()}
        return tree.replace(layer, weights)

    stacked = tree.replace(layers, {**dict.fromkeys(frozen), **own})
    return Span(stacked, jnp.arange(first, last), complete)

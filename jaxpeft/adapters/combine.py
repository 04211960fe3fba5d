"""Several LoRAs over one base as a single one: the weighted sum of their updates."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError, suggest

Factors = tuple[np.ndarray, np.ndarray]  # (*layers, d_in, r) and (*layers, r, d_out)


def combine(
    adapted: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    *,
    method: str = "cat",
    r: int | None = None,
) -> dict[str, Any]:
    """The params whose LoRAs are the sum of `weights[i]` times those of `adapted[i]`.

    Scales are folded in: those of the result are 1, and 0 in layers that none adapts.
    Both methods are those of PEFT's `add_weighted_adapter`, but where the first adapter
    is an rsLoRA: PEFT then gives the sum times the root of its rank, not the sum.

    Args:
        adapted: params mappings that hold LoRA nodes over the same base, not
            necessarily in the same modules or of the same rank.
        weights: a finite number for each of them.
        method: a key of `METHODS`: "cat" is exact, and the ranks add up; "svd" is the
            nearest update of rank `r`.
        r: with "svd" the rank of the result, by default the largest of the given ones.

    Raises:
        InputError: the method is unknown, a number cannot be used, or an adapter is
            no LoRA.
    """
    _check(adapted, weights, method, r)
    terms_of: dict[str, list[tuple[LoRA, float]]] = {}
    for params, weight in zip(adapted, weights, strict=True):
        for name, node in _loras(params).items():
            terms_of.setdefault(name, []).append((node, weight))
    bare = {name: node.base for name, node in _loras(adapted[0]).items()}
    changes = {
        name: _combined(terms, METHODS[method], r) for name, terms in terms_of.items()
    }
    return tree.replace(tree.replace(adapted[0], bare), changes)


def concatenated(factors: Factors, r: int) -> Factors:
    """The factors as they are: exact, and the rank is the sum of the ranks.

    Args:
        factors: of all adapters side by side, (*layers, d_in, ranks) and (*layers,
            ranks, d_out) float64.
        r: not used.
    """
    return factors


def truncated(factors: Factors, r: int) -> Factors:
    """The nearest product of rank `r`, in the Frobenius norm (Eckart, Young, 1936).

    It follows from the QR decompositions of both factors and the SVD of a matrix as
    small as their rank: no matrix of the module's own size is formed. The singular
    values are divided evenly between the two.

    Args:
        factors: of all adapters side by side, (*layers, d_in, ranks) and (*layers,
            ranks, d_out) float64.
        r: the rank of the result.

    Returns:
        (*layers, d_in, r) and (*layers, r, d_out); less than `r` where the ranks add up
        to less.
    """
    a, b = factors
    q_a, r_a = np.linalg.qr(a)
    q_b, r_b = np.linalg.qr(np.swapaxes(b, -1, -2))
    u, s, vh = np.linalg.svd(r_a @ np.swapaxes(r_b, -1, -2), full_matrices=False)
    root = np.sqrt(s[..., :r])
    a = q_a @ u[..., :, :r] * root[..., None, :]
    b = root[..., :, None] * (vh[..., :r, :] @ np.swapaxes(q_b, -1, -2))
    return a, b


# Both get the factors one beside the other, in float64.
METHODS: dict[str, Callable[[Factors, int], Factors]] = {
    "cat": concatenated,
    "svd": truncated,
}


def _combined(
    terms: Sequence[tuple[LoRA, float]],
    method: Callable[[Factors, int], Factors],
    r: int | None,
) -> LoRA:
    """The single adapter of a kernel, from those that it has and their weights."""
    scaled, used = [], np.zeros(terms[0][0].scale.shape, bool)
    for node, weight in terms:
        scale = np.asarray(node.scale, np.float64)
        scaled.append(np.asarray(node.a, np.float64) * weight * scale[..., None, None])
        used |= scale != 0
    together = [np.asarray(node.b, np.float64) for node, _ in terms]
    factors = np.concatenate(scaled, -1), np.concatenate(together, -2)
    a, b = method(factors, r or max(node.rank for node, _ in terms))
    return LoRA(
        base=terms[0][0].base,
        a=jnp.asarray(a, jnp.float32),
        b=jnp.asarray(b, jnp.float32),
        scale=jnp.asarray(used, jnp.float32),
        lora_alpha=float(a.shape[-1]),
    )


def _loras(params: Mapping[str, Any]) -> dict[str, LoRA]:
    nodes = kernel.nodes(params).items()
    return {name: node.plain() for name, node in nodes if isinstance(node, LoRA)}


def _check(
    adapted: Sequence[Mapping[str, Any]],
    weights: Sequence[float],
    method: str,
    r: int | None,
) -> None:
    problems = []
    if method not in METHODS:
        problems.append(f"method: found {method!r}" + suggest(method, METHODS))
    if r is not None and (method == "cat" or r < 1):
        wanted = "1 or more" if method == "svd" else "nothing but with method svd"
        problems.append(f"r: found {r}; give {wanted}")
    if len(adapted) != len(weights) or not adapted:
        problems.append(
            f"weights: found {len(weights)} for {len(adapted)} adapters; give one each"
        )
    problems += [
        f"weights: found {weight}; give finite numbers"
        for weight in weights
        if not math.isfinite(weight)
    ]
    for i, params in enumerate(adapted):
        problems += [
            f"adapter {i + 1}: {name} is a {type(node).__name__}; only LoRAs have a "
            "weighted sum: merge it into its model instead"
            for name, node in kernel.nodes(params).items()
            if kernel.is_adapter(node) and not isinstance(node, LoRA)
        ]
        if not any(map(kernel.is_adapter, kernel.nodes(params).values())):
            problems.append(f"adapter {i + 1}: the params hold no LoRA")
    problems += _other_shapes(adapted)
    if problems:
        raise InputError(*problems)


def _other_shapes(adapted: Sequence[Mapping[str, Any]]) -> list[str]:
    shapes: dict[str, tuple[int, ...]] = {}
    problems = []
    for i, params in enumerate(adapted):
        for name, node in _loras(params).items():
            first = shapes.setdefault(name, node.shape)
            if node.shape != first:
                problems.append(
                    f"adapter {i + 1}: {name} has shape {node.shape}, not {first} as "
                    "before; combine adapters of one base"
                )
    return problems

"""Several LoRAs over one base: each row of a batch has its own (as in S-LoRA, 2023)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpeft import kernel as kernels
from jaxpeft import tree
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.targets import in_mixture
from jaxpeft.errors import InputError, suggest
from jaxpeft.kernel import Axes

BASE = "base"  # the name that chooses no adapter


@struct.dataclass
class Several:
    """The kernel that is `base + scale[i] * a[i] @ b[i]` for a row that has adapter i.

    Attributes:
        base: the kernel that all share, (*layers, d_in, d_out).
        a: (*layers, adapters, d_in, r) float32, smaller ranks padded with zeros.
        b: (*layers, adapters, r, d_out) float32, padded likewise.
        scale: (*layers, adapters) float32, 0 where an adapter leaves a layer out.
        rows: (*layers, batch) int32, the adapter of each row of the first axis of x, -1
            for the base alone; `choose` sets it.
        names: of the adapters, in the order of their axis.
    """

    base: Any
    a: Array
    b: Array
    scale: Array
    rows: Array | None = None
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, d_in, d_out)."""
        return self.base.shape

    def __rmatmul__(self, x: Array) -> Array:
        if self.rows is None or self.rows.shape != x.shape[:1]:
            count = "none" if self.rows is None else len(self.rows)
            raise InputError(
                f"adapters: {count} chosen for a batch of {len(x)} rows; call "
                "adapters.choose(params, names) with a name for each row"
            )
        # -1 takes the last one's factors, and nothing of them.
        scale = jnp.where(self.rows < 0, 0.0, self.scale[self.rows])
        a, b = (factor[self.rows].astype(x.dtype) for factor in (self.a, self.b))
        low = jnp.einsum("n...i,nir->n...r", x, a)
        low = low * jnp.expand_dims(scale, range(1, x.ndim)).astype(x.dtype)
        return x @ self.base + jnp.einsum("n...r,nro->n...o", low, b)

    def dense(self) -> Array:
        """Never returns, since there is no one matrix.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"adapters: {', '.join(self.names)} stand over one base, which has no one "
            "matrix with all of them; load the adapter that is wanted alone"
        )

    def axes(self, base: Axes) -> "Several":
        """The logical axes: `a` and `b` follow the kernel's; all else is replicated.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        *layers, d_in, d_out = base
        return dataclasses.replace(
            self,
            base=kernels.axes_of(self.base, base),
            a=(*layers, None, d_in, None),
            b=(*layers, None, None, d_out),
            scale=(*layers, None),
            rows=None if self.rows is None else (*layers, None),
        )


def several(
    params: Mapping[str, Any], adapted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The base `params` with the LoRAs of all `adapted` params beside each other.

    Nothing is chosen yet, see `choose`.

    Args:
        params: of the base, which is shared and may be quantized.
        adapted: {name to choose by: the params of that base with the adapter's LoRAs}.

    Raises:
        InputError: a name cannot be chosen by, an adapter is no LoRA, or params differ
            from `params` in more than their adapters.
    """
    problems = [] if adapted else ["adapters: none given; name at least one"]
    if BASE in adapted:
        problems.append(
            f"adapters: found the name {BASE!r}, which stands for the base alone; "
            "choose another"
        )
    own = dict(tree.walk(params))
    loras = {}
    for name, other in adapted.items():
        loras[name] = {p: k.plain() for p, k in tree.walk(other) if isinstance(k, LoRA)}
        problems += _problems(name, own, dict(tree.walk(other)))
    if problems:
        raise InputError(*problems)
    paths = {path for nodes in loras.values() for path in nodes}
    changes = {
        path: _stacked(own[path], {n: nodes.get(path) for n, nodes in loras.items()})
        for path in own
        if path in paths
    }
    return tree.replace(params, changes)


def choose(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The params of `several` for a batch whose rows have the adapters `names`.

    A batch of one size is one compiled program, whatever its rows have.

    Args:
        params: as `several` gives them.
        names: of the adapters, one for each row; "base" is the base alone.

    Raises:
        InputError: a name is none of the adapters'.
    """
    nodes = {n: k for n, k in kernels.nodes(params).items() if isinstance(k, Several)}
    known = next((node.names for node in nodes.values()), ())
    index = {BASE: -1, **{name: i for i, name in enumerate(known)}}
    unknown = [name for name in dict.fromkeys(names) if name not in index]
    if unknown:
        raise InputError(
            *(f"adapter: {n!r} is none of them{suggest(n, index)}" for n in unknown)
        )
    rows = np.array([index[name] for name in names], np.int32)

    def of_batch(node: Several) -> Several:
        shape = (*node.shape[:-2], len(rows))
        return dataclasses.replace(node, rows=jnp.broadcast_to(rows, shape))

    return tree.replace(params, {name: of_batch(k) for name, k in nodes.items()})


def of_row(params: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The params for one row of a batch alone, with the adapter chosen for it.

    Args:
        params: as `choose` gives them, or any others, which stay as they are.
        row: its number.
    """
    nodes = {n: k for n, k in kernels.nodes(params).items() if isinstance(k, Several)}
    changes = {
        name: dataclasses.replace(node, rows=node.rows[..., row : row + 1])
        for name, node in nodes.items()
        if node.rows is not None
    }
    return tree.replace(params, changes)


def _problems(
    name: str, base: Mapping[str, Any], other: Mapping[str, Any]
) -> list[str]:
    """What keeps the adapter `name` from standing beside others."""
    problems = []
    remedy = "load it alone, or merge it into a model of its own"
    kinds = {type(k).__name__ for k in other.values() if kernels.base_of(k) is not k}
    kinds -= {LoRA.__name__}
    for kind in sorted(kinds):
        problems.append(
            f"adapters: {name!r} is a {kind}; only LoRAs can be chosen for each "
            f"request: {remedy}"
        )
    for path, node in other.items():
        if isinstance(node, LoRA) and not _can_choose(path):
            problems.append(
                f"adapters: {name!r} adapts {path}; an embedding, a router and experts "
                f"cannot be chosen for each request: {remedy}"
            )
    if problems:
        return problems
    pairs = {p: k.base if isinstance(k, LoRA) else k for p, k in other.items()}
    if pairs.keys() != base.keys():
        differing = sorted(pairs.keys() ^ base.keys())
    else:
        differing = [path for path in pairs if not _same(base[path], pairs[path])]
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        problems.append(
            f"adapters: {name!r} differs from the base in {differing[0]}{more}; "
            f"adapters share one base: {remedy}"
        )
    return problems


def _can_choose(path: str) -> bool:
    """Whether the kernel there meets rows of a batch as they are."""
    return path.endswith(".kernel") and not in_mixture(path)


def _same(one: Any, other: Any) -> bool:
    """Whether two weights are the same arrays, or equal ones."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(a is b or bool(jnp.array_equal(a, b)) for a, b in pairs)


def _stacked(base: Any, nodes: Mapping[str, LoRA | None]) -> Several:
    """The node around one kernel, of the adapters' LoRAs; None: one leaves it out."""
    *layers, d_in, d_out = base.shape
    rank = max(node.rank for node in nodes.values() if node is not None)
    shape = (*layers, len(nodes))
    a = np.zeros((*shape, d_in, rank), np.float32)
    b = np.zeros((*shape, rank, d_out), np.float32)
    scale = np.zeros(shape, np.float32)
    for i, node in enumerate(nodes.values()):
        if node is not None:
            a[..., i, :, : node.rank] = node.a
            b[..., i, : node.rank, :] = node.b
            scale[..., i] = node.scale
    return Several(
        base, jnp.asarray(a), jnp.asarray(b), jnp.asarray(scale), names=tuple(nodes)
    )

"""Weights of the base that train themselves, beside an adapter or without one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxpeft import kernel as kernels
from jaxpeft import tree
from jaxpeft.adapters import targets
from jaxpeft.devices import host_memory
from jaxpeft.errors import InputError, suggest
from jaxpeft.kernel import Axes

Bias = Literal["none", "all", "lora_only"]


@struct.dataclass
class Saved:
    """A weight that trains: a float32 copy in the place where the base's stood.

    Attributes:
        weight: float32, of any shape: a kernel, a bias, a norm's scale or an embedding.
        dtype: that of the base, in which what is looked up in it is given.
        base: of an embedding, the table as it was, which a head that shared it goes on
            reading; None: nothing reads it, or the head reads `weight`.
        trains: false: it does not, but came with an adapter that was trained over it,
            such as an embedding with more rows; then it has the dtype of the base.
    """

    weight: Array
    dtype: Any = struct.field(pytree_node=False, default="float32")
    base: Any = None
    trains: bool = struct.field(pytree_node=False, default=True)

    @property
    def TRAINABLE(self) -> tuple[str, ...]:
        """The names of the fields that train."""
        return ("weight",) if self.trains else ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.weight.shape

    @property
    def T(self) -> "Saved":
        """The transpose: an embedding as a head."""
        return self.replace(  # type: ignore[attr-defined]
            weight=self.weight.T, base=None
        )

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.weight.astype(x.dtype)

    def __getitem__(self, index: Any) -> Array:
        return self.weight[index].astype(self.dtype)

    def astype(self, dtype: Any) -> Array:
        """The weight in another dtype."""
        return self.weight.astype(dtype)

    def dense(self) -> Array:
        """The weight, float32."""
        return self.weight.astype(jnp.float32)

    def axes(self, base: Axes) -> "Saved":
        """The logical axes: those of the base's weight.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        beneath = None if self.base is None else kernels.axes_of(self.base, base)
        return self.replace(  # type: ignore[attr-defined]
            weight=base, base=beneath
        )


def save(weight: Any) -> Saved:
    """The copy of a base's weight that trains; a quantized one becomes whole.

    Args:
        weight: an array, or a kernel of any kind.
    """
    # A copy even of float32: a step takes over the buffers of what trains.
    whole = kernels.dense(host_memory.brought(weight))
    return Saved(jnp.array(whole, jnp.float32), str(weight.dtype))


def saved_names(
    params: Mapping[str, Any],
    modules_to_save: Sequence[str],
    known: targets.Names | None = None,
) -> dict[str, list[str]]:
    """The weights of the modules that are named, by the modules' paths.

    Args:
        params: of a base.
        modules_to_save: an entry is a module's whole name or its last components
            ("lm_head", "norm"); it means that module in every layer.
        known: Hugging Face's names, by path.

    Returns:
        {path of a module: the dotted names of its weights}.

    Raises:
        InputError: an entry names no module, or experts.
    """
    modules: dict[str, list[str]] = {}
    for name, _ in tree.walk(params):
        # A weight with a name of its own in `known` is a module by itself.
        path = name if name in (known or {}) else name.rpartition(".")[0]
        modules.setdefault(path, []).append(name)
    called = {path: (known or {}).get(path, [path])[0] for path in modules}

    def named(path: str, entry: str) -> bool:
        return targets.is_hit(called[path], entry) or targets.is_hit(path, entry)

    missing = [
        entry for entry in modules_to_save if not any(named(p, entry) for p in modules)
    ]
    if missing:
        short = dict.fromkeys(name.rsplit(".", 1)[-1] for name in called.values())
        raise InputError(
            *(
                f"adapter.modules_to_save: {entry!r} names no module; an entry is a "
                "module's name in every layer" + suggest(entry, short)
                for entry in missing
            )
        )
    chosen = {
        path: names
        for path, names in modules.items()
        if any(named(path, entry) for entry in modules_to_save)
    }
    for path in chosen:
        if targets.in_mixture(path):
            raise InputError(
                f"adapter.modules_to_save: {called[path]!r} is of a mixture of "
                "experts, which no adapter's file holds as a whole; give it a lora"
            )
    return chosen


def biases(
    params: Mapping[str, Any], bias: Bias, chosen: Mapping[str, Sequence[bool]]
) -> list[str]:
    """The dotted names of the biases that train, as PEFT's `bias` says.

    Args:
        params: of a base.
        bias: "none" of them, "all", or "lora_only": those of the adapted modules.
        chosen: {path of a module: for each layer whether it is adapted}.

    Raises:
        InputError: `bias` is "lora_only", and a module is adapted in some layers only.
    """
    suffix = ".bias"
    names = [name for name, _ in tree.walk(params) if name.endswith(suffix)]
    if bias == "all":
        return names
    if bias == "none":
        return []
    names = [name for name in names if name.removesuffix(suffix) in chosen]
    uneven = [n for n in names if not all(chosen[n.removesuffix(suffix)])]
    if uneven:
        raise InputError(
            f"adapter.bias: found 'lora_only', and {uneven[0]} is adapted in some "
            "layers only; use none or all, or adapt all layers"
        )
    return names

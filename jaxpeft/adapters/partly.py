"""Full fine-tuning of some weights only: whole modules, or some layers of a stack."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxpeft import tree
from jaxpeft.adapters import targets
from jaxpeft.errors import InputError, suggest
from jaxpeft.kernel import Axes


@struct.dataclass
class Partly:
    """A weight of the base that trains in the dtype it has: whole, or in some layers.

    Attributes:
        own: what trains, the weight itself or the (n, ...) of its layers that train.
        stack: the (layers, ...) as they were, None where all of them train; its rows
            in whose place `own` has others are read no more.
        numbers: which layers `own` holds, in order; None for a weight that no stack
            holds.
    """

    own: Array
    stack: Any = None
    numbers: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)

    TRAINABLE = ("own",)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, all layers counted."""
        return self.own.shape if self.stack is None else self.stack.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return self.own.dtype

    @property
    def T(self) -> Array:
        """The transpose: an embedding as a head."""
        return self.own.T

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self._whole().astype(x.dtype)

    def __getitem__(self, index: Any) -> Array:
        if self.numbers is None:
            return self.own[index]
        number, *within = index if isinstance(index, tuple) else (index,)
        return self.of_layer(number)[tuple(within)]

    def astype(self, dtype: Any) -> Array:
        """The whole weight in another dtype."""
        return self._whole().astype(dtype)

    def dense(self) -> Array:
        """The whole weight, float32."""
        return self.astype(jnp.float32)

    def axes(self, base: Axes) -> "Partly":
        """The logical axes: those of the weight; layers are never split.

        Args:
            base: the logical axes of the kernel, one name for each dimension.

        Returns:
            This node with axes in the place of its arrays.
        """
        stack = None if self.stack is None else base
        return self.replace(own=base, stack=stack)  # type: ignore[attr-defined]

    def trains(self, number: int) -> bool:
        """Whether the layer of this number trains."""
        return number in (self.numbers or ())

    def rows(self, first: int, last: int) -> Array:
        """The weights of neighbouring layers, all of which train.

        Args:
            first: the number of the first layer.
            last: one beyond the number of the last layer.

        Returns:
            (last - first, ...).
        """
        start = (self.numbers or ()).index(first)
        return self.own[start : start + last - first]

    def of_layer(self, number: int | Array) -> Array:
        """The weight of one layer.

        Args:
            number: of the layer; it may be traced, () int32.
        """
        if self.stack is None:
            return self.own[number]
        known = {n: row for row, n in enumerate(self.numbers or ())}
        if isinstance(number, int):
            row = known.get(number)
            return self.stack[number] if row is None else self.own[row]
        rows = np.asarray([known.get(n, -1) for n in range(self.stack.shape[0])])
        row = jnp.asarray(rows)[number]
        return jnp.where(row < 0, self.stack[number], self.own[jnp.maximum(row, 0)])

    def _whole(self) -> Array:
        if self.stack is None:
            return self.own
        return self.stack.at[np.asarray(self.numbers)].set(self.own)


def train_some(
    params: Mapping[str, Any],
    known: targets.Names | None,
    *,
    target_modules: targets.Wanted,
    exclude_modules: targets.Wanted | None = None,
    layers_to_transform: int | Sequence[int] | None = None,
    trainable_layers: int | None = None,
    modules_to_save: Sequence[str] = (),
) -> dict[str, Any]:
    """The params, of which what these settings name trains and all else is frozen.

    Settings that say nothing leave the params as they are: everything trains.

    Args:
        params: of a base.
        known: Hugging Face's names of the modules, by path; None: they are the paths
            with the layers' numbers.
        target_modules: names of modules or of what holds them ("q_proj", "mlp",
            "norm"), an expression over whole names, or "all-linear", which here says
            nothing: every module.
        exclude_modules: likewise, what is left out.
        layers_to_transform: numbers of the layers that train; a module outside of the
            layers then trains only where a name means it.
        trainable_layers: the last so many layers train, or the first where it is
            negative.
        modules_to_save: names of modules that train besides, in all layers.

    Raises:
        InputError: a name means nothing, a layer is not there, settings contradict each
            other, or nothing is left.
    """
    modules = _modules(params, known or {})
    names = {
        path: list((known or {}).get(path) or targets.module_names(path, layers))
        for path, layers in _stacks(params, modules).items()
    }
    numbers = _numbers(names, layers_to_transform, trainable_layers)
    everything = target_modules == targets.ALL_LINEAR
    if everything and numbers is None and not exclude_modules and not modules_to_save:
        return dict(params)
    _refuse_contradictions(target_modules, numbers, modules_to_save)
    if not everything:
        _require(target_modules, names, "target_modules")
    _require(exclude_modules, names, "exclude_modules")
    _require(modules_to_save, names, "modules_to_save")

    def chosen(path: str, number: int, name: str) -> bool:
        if _means(modules_to_save, name):
            return True
        if exclude_modules and _means(exclude_modules, name):
            return False
        if not everything and not _means(target_modules, name):
            return False
        if numbers is None:
            return True
        return number in numbers if _in_stack(path) else not everything

    hits = {
        path: tuple(i for i, name in enumerate(own) if chosen(path, i, name))
        for path, own in names.items()
    }
    if not any(hits.values()):
        raise InputError(
            f"adapter.exclude_modules: {exclude_modules!r} leaves nothing that trains; "
            "take some out"
        )
    leaves = dict(tree.walk(params))
    changes = {
        leaf: _partly(leaves[leaf], training if _in_stack(path) else None)
        for path, training in hits.items()
        if training
        for leaf in modules[path]
    }
    return tree.replace(params, changes)


def full(
    params: Mapping[str, Any],
    key: Array,
    *,
    chosen: Mapping[str, Any],
    trainable_layers: int | None = None,
) -> dict[str, Any]:
    """No adapter: the base itself trains, whole or in part; the result is a model.

    Args:
        params: of a base.
        key: not used; nothing is random.
        chosen: the keywords of `train_some` that name what trains.
        trainable_layers: the last so many layers train, or the first if negative.

    Returns:
        The params as `train_some` gives them.

    Raises:
        InputError: as there.
    """
    del key
    return train_some(params, **chosen, trainable_layers=trainable_layers)


def _refuse_contradictions(
    target_modules: targets.Wanted,
    numbers: set[int] | None,
    modules_to_save: Sequence[str],
) -> None:
    """Raises InputError for settings of which one makes another say nothing."""
    everything = target_modules == targets.ALL_LINEAR
    if everything and modules_to_save and numbers is None:
        raise InputError(
            f"adapter.modules_to_save: found {list(modules_to_save)} with method full, "
            "where every module trains; name those that are to train in target_modules"
        )
    if numbers is not None and isinstance(target_modules, str) and not everything:
        raise InputError(
            f"adapter.layers_to_transform: found {sorted(numbers)} beside an "
            "expression, which alone decides; name the layers in it, or give "
            "target_modules as a list"
        )


def _partly(weight: Any, numbers: tuple[int, ...] | None) -> Partly:
    if numbers is None or len(numbers) == weight.shape[0]:
        return Partly(weight, None, numbers)
    return Partly(weight[np.asarray(numbers)], weight, numbers)


def _modules(params: Mapping[str, Any], known: targets.Names) -> dict[str, list[str]]:
    """The weights of every module: {path of the module: their dotted names}.

    A weight with a name of its own in `known` is a module by itself.
    """
    modules: dict[str, list[str]] = {}
    for name, _ in tree.walk(params):
        path = name if name in known else name.rpartition(".")[0]
        modules.setdefault(path, []).append(name)
    return modules


def _stacks(
    params: Mapping[str, Any], modules: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, ...]]:
    """{path: how many layers its weights stack, as a tuple; () for none}."""
    leaves = dict(tree.walk(params))
    return {
        path: tuple(leaves[names[0]].shape[:1]) if _in_stack(path) else ()
        for path, names in modules.items()
    }


def _in_stack(path: str) -> bool:
    return f".{targets.STACK}." in path


def _numbers(
    names: targets.Names,
    layers_to_transform: int | Sequence[int] | None,
    trainable_layers: int | None,
) -> set[int] | None:
    """The layers that train; None: the settings say nothing of layers."""
    count = max(len(own) for path, own in names.items() if _in_stack(path))
    if trainable_layers is not None:
        return _last(trainable_layers, count, layers_to_transform)
    if layers_to_transform is None or layers_to_transform in ([], ()):
        return None
    wanted = layers_to_transform
    numbers = {wanted} if isinstance(wanted, int) else set(wanted)
    beyond = [number for number in sorted(numbers) if not 0 <= number < count]
    if beyond:
        raise InputError(
            f"adapter.layers_to_transform: found {beyond[0]}; the model's layers are "
            f"0 to {count - 1}"
        )
    return numbers


def _last(wanted: int, count: int, beside: Any) -> set[int]:
    if beside is not None:
        raise InputError(
            f"adapter.trainable_layers: found {wanted} beside layers_to_transform "
            f"{beside!r}; give only one"
        )
    if not 0 < abs(wanted) <= count:
        raise InputError(
            f"adapter.trainable_layers: found {wanted}; the model has {count} layers: "
            f"give 1 to {count} for the last ones, or -1 to -{count} for the first"
        )
    return set(range(count - wanted, count) if wanted > 0 else range(-wanted))


def _means(wanted: targets.Wanted, name: str) -> bool:
    """Whether names, of the module or of what holds it, or an expression mean it."""
    if isinstance(wanted, str):
        return bool(re.fullmatch(wanted, name))
    parts = name.split(".")
    holders = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(targets.is_hit(holder, entry) for entry in wanted for holder in holders)


def _require(wanted: targets.Wanted | None, names: targets.Names, key: str) -> None:
    """Raises InputError for names, or an expression, that mean no module."""
    everything = [name for own in names.values() for name in own]
    for entry in [wanted] if isinstance(wanted, str) else wanted or ():
        try:
            hit = any(
                _means(entry if isinstance(wanted, str) else [entry], name)
                for name in everything
            )
        except re.error as error:
            raise InputError(
                f"adapter.{key}: {entry!r} is no regular expression: {error}"
            ) from None
        if not hit:
            short = dict.fromkeys(own[0].rsplit(".", 1)[-1] for own in names.values())
            raise InputError(
                f"adapter.{key}: {entry!r} means no module of this model"
                + suggest(entry, short)
            )

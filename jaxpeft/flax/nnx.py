"""LoRA for any model written in Flax NNX."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array

from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError
from jaxpeft.flax import files
from jaxpeft.flax import rules as flax_rules
from jaxpeft.flax.forms import Contraction, Convolution, Form, Lookup, over_axes

ARRAYS = ("a", "b", "scale", "start_a", "start_b")  # of a LoRA, besides its base


class AdapterConstant(nnx.Variable):
    """A variable that belongs to an adapter and does not train."""


class Adapted(nnx.Module):
    """A module whose output has an adapter's update added.

    The adapter's arrays are attributes too: `lora_a` and `lora_b`, its matrices,
    float32, `nnx.LoRAParam`s where they train, and `lora_scale`, an AdapterConstant,
    like `lora_start_a` and `lora_start_b` of PiSSA and OLoRA. With dropout there is an
    RNG stream `rngs`, and `deterministic`, which `model.train()` and `model.eval()`
    set.

    Attributes:
        base: The module itself, its arrays as they were.
        form: How its weight is a matrix.
        settings: The adapter without its arrays.
    """

    def __init__(self, base: Any, form: Form, node: LoRA, key: Array):
        self.base = base
        self.form: Any = nnx.static(form)
        for name in _present(node):
            kind = nnx.LoRAParam if name in node.TRAINABLE else AdapterConstant
            setattr(self, f"lora_{name}", kind(getattr(node, name)))
        bare = dataclasses.replace(node, base=None, **dict.fromkeys(ARRAYS))
        self.settings = nnx.static(bare)
        if node.dropout > 0.0:
            keys = jax.random.split(key, node.scale.shape) if node.scale.ndim else key
            self.deterministic = False
            self.rngs = nnx.RngStream(keys, tag="dropout")

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        sharded = {} if out_sharding is None else {"out_sharding": out_sharding}
        y = self.base(inputs, **sharded)
        update = self.form.update(self.node(), inputs, y.dtype, self._twin)
        return y + update.astype(y.dtype)

    def attend(self, query: Array) -> Array:
        """The products of queries with all adapted entries, of an embedding.

        Args:
            query: The queries, (..., features).

        Returns:
            An array (..., entries).

        Raises:
            AttributeError: For other modules than embeddings.
        """
        y = self.base.attend(query)
        return y + self.form.attend(self.values(), query.astype(y.dtype))

    def node(self) -> LoRA:
        """The adapter as it is now; `base` is None, `key` set where it is to drop."""
        dropping = self.settings.dropout > 0.0 and not self.deterministic
        return dataclasses.replace(self.values(), key=self.rngs() if dropping else None)

    def values(self) -> LoRA:
        """The adapter's arrays; `base` and `key` are None."""
        names = [name for name in ARRAYS if hasattr(self, f"lora_{name}")]
        arrays = {name: getattr(self, f"lora_{name}")[...] for name in names}
        return dataclasses.replace(self.settings, **arrays)

    def merged(self, dtype: Any = None) -> nnx.Module:
        """The base module with the update in its weight, summed in float32.

        Args:
            dtype: The dtype in which the sum is stored; None: the weight's own.
        """
        weight = getattr(self.base, self.form.weight)
        matrix = self.form.matrix(weight[...])
        node = dataclasses.replace(self.values(), base=matrix)
        tensor = self.form.tensor(node.dense()).astype(dtype or weight.dtype)
        module = nnx.clone(self.base)
        getattr(module, self.form.weight).set_value(tensor)
        return module

    def _twin(self, x: Array, window: Array) -> Array:
        twin = nnx.clone(self.base)
        twin.kernel, twin.bias, twin.use_bias = nnx.Param(window), None, False
        return twin(x)


def _present(node: LoRA) -> list[str]:
    return [name for name in ARRAYS if getattr(node, name) is not None]


def _linear(module: nnx.Linear) -> Form:
    return Contraction("...i,io->...o", (module.in_features, module.out_features))


def _linear_general(module: nnx.LinearGeneral) -> Form:
    batch = module.batch_axis
    shape = (*batch.values(), *module.in_features, *module.out_features)
    return over_axes(module.axis, tuple(batch), shape)


def _einsum(module: nnx.Einsum) -> Form:
    return Contraction(module.einsum_str, tuple(module.kernel_shape))


def _conv(module: nnx.Conv) -> Form:
    masked, groups = module.mask is not None, module.feature_group_count
    return Convolution(tuple(module.kernel_shape), groups, masked)


def _embed(module: nnx.Embed) -> Form:
    return Lookup((module.num_embeddings, module.features))


# What can be adapted. A class of one's own counts as the one whose `__call__` it has.
FORMS: dict[type, Callable[[Any], Form]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Einsum: _einsum,
    nnx.Conv: _conv,
    nnx.Embed: _embed,
}


def inject(model: nnx.Module, rules: Mapping[str, Any], key: Array) -> Any:
    """The model with an adapter around every targeted module; it computes the same.

    The model given stays as it is; the result shares its arrays. Only the adapters'
    arrays are `nnx.LoRAParam`: give `wrt=nnx.LoRAParam` to the optimizer and
    `nnx.DiffState(0, nnx.LoRAParam)` to `nnx.grad`.

    Args:
        model: The model.
        rules: The settings that `adapters.inject` takes: method lora or lora_fa,
            target_modules, r, lora_alpha, lora_dropout, use_rslora, init_lora_weights.
            Names are dotted paths of modules ("blocks.0.attention.query"); "all-linear"
            leaves out Conv and Embed.
        key: The key that the adapters and their dropout are drawn with.

    Raises:
        InputError: As `adapters.inject`, and where the model has such arrays already.
    """
    modules = _modules(model)
    forms = {path: form for path, (form, _) in modules.items()}
    weights = {path: weight for path, (_, weight) in modules.items()}
    return _wrapped(model, flax_rules.make(forms, weights, rules, key), forms, key)


def save(model: nnx.Module, directory: str | Path) -> None:
    """Writes the model's adapters as a folder in PEFT's format, see `flax.files`.

    Args:
        model: The model that holds them.
        directory: The folder to write.

    Raises:
        InputError: Where there are none or the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    adapters = _adapted(model)
    others = {
        _dotted(path): _form(module)
        for path, module in nnx.iter_modules(model)
        if _dotted(path[:-1]) not in adapters
    }
    present = {path: module.form for path, module in adapters.items()}
    forms = {**{p: f for p, f in others.items() if f is not None}, **present}
    nodes = {path: module.values() for path, module in adapters.items()}
    files.save(nodes, forms, forms, directory)


def load(
    model: nnx.Module, directory: str | Path, key: Array | None = None
) -> nnx.Module:
    """The model with the adapters of a folder, as `inject` would have put them in.

    Args:
        model: The model, without adapters.
        directory: The adapters' folder.
        key: The key of their dropout; None: `jax.random.key(0)`.

    Raises:
        InputError: Where the folder is damaged, was made for another model, or the
            model holds adapters already.
    """
    modules = _modules(model)
    forms = {path: form for path, (form, _) in modules.items()}
    shapes = {path: tuple(weight.shape) for path, (_, weight) in modules.items()}
    key = jax.random.key(0) if key is None else key
    return _wrapped(model, files.load(forms, shapes, directory), forms, key)


def merge(model: nnx.Module, dtype: Any = None) -> Any:
    """The model with every adapter folded into its module's weight.

    The result has the structure of the model before `inject`.

    Args:
        model: The model that holds the adapters.
        dtype: The dtype in which the sum, formed in float32, is stored; None: the
            weight's own.
    """

    def fold(path: tuple, value: Any) -> Any:
        return value.merged(dtype) if isinstance(value, Adapted) else value

    return nnx.recursive_map(fold, nnx.clone(model))


def _adapted(model: nnx.Module) -> dict[str, Adapted]:
    return {
        _dotted(path): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, Adapted)
    }


def _modules(model: nnx.Module) -> dict[str, tuple[Form, Any]]:
    """{dotted path: (form, weight)} of every module that can be adapted.

    Raises InputError where the model has arrays that would train beside the adapters.
    """
    present = nnx.to_flat_state(nnx.state(model, nnx.LoRAParam))
    if present:
        name = _dotted(present[0][0])
        raise InputError(
            f"the model: {name} is an nnx.LoRAParam already; merge its adapters first "
            "(jaxpeft.flax.merge), as those would train too"
        )
    modules = {}
    for path, module in nnx.iter_modules(model):
        form = _form(module)
        if form is not None:
            modules[_dotted(path)] = form, getattr(module, form.weight)
    return modules


def _wrapped(
    model: nnx.Module,
    nodes: Mapping[str, LoRA],
    forms: Mapping[str, Form],
    key: Array,
) -> Any:
    """A copy of the model, sharing its arrays, with the adapters around its modules."""
    streams = jax.random.split(jax.random.fold_in(key, len(nodes)), len(nodes))
    keys = dict(zip(nodes, streams))

    def wrap(path: tuple, value: Any) -> Any:
        name = _dotted(path)
        if name not in nodes or not isinstance(value, nnx.Module):
            return value
        return Adapted(value, forms[name], nodes[name], keys[name])

    return nnx.recursive_map(wrap, nnx.clone(model))


def _form(module: nnx.Module) -> Form | None:
    for kind, form in FORMS.items():
        if isinstance(module, kind) and type(module).__call__ is kind.__call__:
            return form(module)
    return None


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))

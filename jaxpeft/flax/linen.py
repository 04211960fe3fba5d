"""LoRA for any model written in Flax Linen, over its variables.

An adapter stands in `params` where the weight stood, as everywhere in this library, so
`tree.partition`, `adapters.trainable_mask` and `with_dropout` serve here too. What
differs is the call: `apply` in place of `model.apply`, since Flax's own modules know
arrays alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, struct
from jax import Array

from jaxpeft import kernel, tree
from jaxpeft.adapters import trainable_mask
from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError
from jaxpeft.flax import files
from jaxpeft.flax import rules as flax_rules
from jaxpeft.flax.forms import Contraction, Convolution, Form, Lookup, over_axes
from jaxpeft.kernel import with_dropout

__all__ = ["apply", "inject", "load", "merge", "save", "trainable_mask", "with_dropout"]


@struct.dataclass
class Tensor:
    """A weight of a Linen module as the matrix that it stands for: a kernel.

    Attributes:
        values: The weight, (*layers, ...) as the module has it.
        form: How it is a matrix, a `Form`.
    """

    values: Array
    form: Any = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, (*layers, *batch, d_in, d_out)."""
        layers = self.values.shape[: self.values.ndim - len(self.form.shape)]
        return (*layers, *self.form.matrix_shape())

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return self.values.dtype

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.form.matrix(self.values)

    def dense(self) -> Array:
        """The matrix in float32."""
        return self.form.matrix(self.values).astype(jnp.float32)


def _dense(module: linen.Dense, x: Any) -> Form:
    return Contraction("...i,io->...o", (x.shape[-1], module.features))


def _dense_general(module: linen.DenseGeneral, x: Any) -> Form:
    axis, batch, features = (
        (value,) if isinstance(value, int) else tuple(value)
        for value in (module.axis, module.batch_dims, module.features)
    )
    ordered = sorted(axis, key=lambda a: (a < 0, a))
    sizes = [x.shape[a] for a in (*batch, *ordered)]
    return over_axes(axis, batch, (*sizes, *features))


def _einsum(module: linen.Einsum, x: Any, einsum_str: str | None = None) -> Form:
    equation = einsum_str or module.einsum_str or ""
    return Contraction(equation.replace(" ", ""), tuple(module.shape))


def _conv(module: linen.Conv, x: Any) -> Form:
    size, groups = module.kernel_size, module.feature_group_count
    window = (size,) if isinstance(size, int) else tuple(size)
    shape = (*window, x.shape[-1] // groups, module.features)
    return Convolution(shape, groups, module.mask is not None)


def _embed(module: linen.Embed, x: Any) -> Form:
    return Lookup((module.num_embeddings, module.features))


# What can be adapted. A class of one's own counts as the one whose `__call__` it has.
FORMS: dict[type, Callable[..., Form]] = {
    linen.Dense: _dense,
    linen.DenseGeneral: _dense_general,
    linen.Einsum: _einsum,
    linen.Conv: _conv,
    linen.Embed: _embed,
}


def inject(
    model: linen.Module,
    variables: Mapping[str, Any],
    rules: Mapping[str, Any],
    key: Array,
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """The variables with an adapter in place of every targeted weight of `params`.

    Args:
        model: The module, as it is called with `model.apply`.
        variables: Its variables; weights may be stacked layers of `linen.scan`.
        rules: The settings that `adapters.inject` takes: method lora or lora_fa,
            target_modules, r, lora_alpha, lora_dropout, use_rslora, init_lora_weights.
            Names are dotted paths of modules ("blocks_0.attention.query"); "all-linear"
            leaves out Conv and Embed.
        key: The key that the adapters are drawn with.
        args: The arguments of `model.apply` after the variables, as arrays or shapes:
            the model is traced with them once, to learn what its modules are.
        kwargs: Its keyword arguments, likewise.

    Raises:
        InputError: As `adapters.inject`, and for weights with metadata around them.
    """
    forms, weights = _modules(model, variables, args, kwargs)
    problems = {path: _problem(form, weights[path]) for path, form in forms.items()}
    nodes = flax_rules.make(forms, weights, rules, key, problems)
    return _placed(variables, nodes, forms, weights)


def save(variables: Mapping[str, Any], directory: str | Path) -> None:
    """Writes the adapters as a folder in PEFT's format, see `flax.files`.

    Args:
        variables: The variables that hold them.
        directory: The folder to write.

    Raises:
        InputError: Where there are none or the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    nodes, forms = {}, {}
    for name, node in _nodes(variables).items():
        path = name.removeprefix("params.").removesuffix(node.base.form.weight)[:-1]
        nodes[path], forms[path] = node, node.base.form
    modules = {name.rpartition(".")[0] for name, _ in tree.walk(variables["params"])}
    files.save(nodes, forms, modules, directory)


def load(
    model: linen.Module,
    variables: Mapping[str, Any],
    directory: str | Path,
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    """The variables with the adapters of a folder, as `inject` would put them in.

    Args:
        model: The module, as it is called with `model.apply`.
        variables: Its variables, without adapters.
        directory: The adapters' folder.
        args: The arguments of `model.apply`, see `inject`.
        kwargs: Its keyword arguments, likewise.

    Raises:
        InputError: Where the folder is damaged, was made for another model, or the
            variables hold adapters already.
    """
    forms, weights = _modules(model, variables, args, kwargs)
    problems = {path: _problem(form, weights[path]) for path, form in forms.items()}
    if any(problems.values()):
        raise InputError(*(f"{path}: {p}" for path, p in problems.items() if p))
    shapes = {path: tuple(weight.shape) for path, weight in weights.items()}
    nodes = files.load(forms, shapes, directory)
    return _placed(variables, nodes, forms, weights)


def apply(
    model: linen.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """The result of `model.apply` for variables that hold adapters.

    An adapted module computes its own product with its own weight, and the update of
    low rank is added: no matrix is formed. The call works inside and around `jit`,
    `grad`, `linen.remat` and `linen.scan`.

    Args:
        model: The module.
        variables: Its variables, adapters included.
        args: The arguments of `model.apply` after the variables.
        kwargs: Its keyword arguments.
    """
    with linen.intercept_methods(_with_update):
        return model.apply(variables, *args, **kwargs)


def merge(variables: Mapping[str, Any], dtype: Any = None) -> dict[str, Any]:
    """The variables with every adapter folded into the weight, as before `inject`.

    Args:
        variables: The variables that hold the adapters.
        dtype: The dtype in which the sum, formed in float32, is stored; None: the
            weight's own.
    """
    changes = {
        name: node.base.form.tensor(node.dense()).astype(dtype or node.base.dtype)
        for name, node in _nodes(variables).items()
    }
    return tree.replace(variables, changes)


def _nodes(variables: Mapping[str, Any]) -> dict[str, LoRA]:
    return {
        name: node
        for name, node in kernel.nodes(variables).items()
        if isinstance(kernel.base_of(node), Tensor)
    }


def _placed(
    variables: Mapping[str, Any],
    nodes: Mapping[str, LoRA],
    forms: Mapping[str, Form],
    weights: Mapping[str, Any],
) -> dict[str, Any]:
    changes = {
        _place(path, forms[path]): dataclasses.replace(
            node, base=Tensor(weights[path], forms[path])
        )
        for path, node in nodes.items()
    }
    return tree.replace(variables, changes)


def _place(path: str, form: Form) -> str:
    return ".".join(part for part in ("params", path, form.weight) if part)


def _problem(form: Form, weight: Any) -> str:
    """What keeps a weight from being adapted, if anything."""
    if isinstance(weight, LoRA):
        return "has an adapter already; merge it first (jaxpeft.flax.linen.merge)"
    if not hasattr(weight, "shape"):
        return (
            f"found {type(weight).__name__}, metadata around the weight; give "
            "flax.linen.meta.unbox(variables)"
        )
    if tuple(weight.shape[len(weight.shape) - len(form.shape) :]) != form.shape:
        return (
            f"found the shape {tuple(weight.shape)} for a module with weights of shape "
            f"{form.shape}; layers must be stacked along the first axis (linen.scan "
            "with variable_axes={'params': 0})"
        )
    return ""


def _modules(
    model: linen.Module, variables: Mapping[str, Any], args: tuple, kwargs: dict
) -> tuple[dict[str, Form], dict[str, Any]]:
    """({path: form}, {path: weight}) of every module that can be adapted."""
    forms = _forms(model, variables, args, kwargs)
    values = dict(tree.walk(variables))
    return forms, {path: values[_place(path, form)] for path, form in forms.items()}


def _forms(
    model: linen.Module, variables: Mapping[str, Any], args: tuple, kwargs: dict
) -> dict[str, Form]:
    """{dotted path: form} of every module that can be adapted, in calling order."""
    forms: dict[str, Form] = {}

    def record(call: Any, inputs: tuple, settings: dict, context: Any) -> Any:
        kind = _kind(context.module)
        if kind is not None and context.method_name == "__call__":
            given, others = _positional(inputs, settings)
            form = FORMS[kind](context.module, *given, **others)
            path = ".".join(context.module.path)
            if forms.setdefault(path, form) != form:
                raise InputError(
                    f"{path}: called as {forms[path]} and as {form}; a module must use "
                    "its weight in one way to be adapted"
                )
        return call(*inputs, **settings)

    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = [leaf for leaf in leaves if hasattr(leaf, "dtype")]

    def trace(variables: Any, arrays: list) -> Any:
        given = iter(arrays)
        whole = [next(given) if hasattr(x, "dtype") else x for x in leaves]
        args, kwargs = jax.tree.unflatten(structure, whole)
        return model.apply(variables, *args, **kwargs)

    bases = {name: node.base.values for name, node in _nodes(variables).items()}
    with linen.intercept_methods(record):
        jax.eval_shape(trace, tree.replace(variables, bases), arrays)
    return forms


def _kind(module: linen.Module) -> type | None:
    for kind in FORMS:
        if isinstance(module, kind) and type(module).__call__ is kind.__call__:
            return kind
    return None


def _positional(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments with the input first, whether or not it was given by its name."""
    others = dict(kwargs)
    for name in ("inputs", "query"):
        if name in others:
            args = (others.pop(name), *args)
    return args, others


def _with_update(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
    """The interceptor: what a method of a module gives, its adapter's update added."""
    module, method = context.module, context.method_name
    kind = _kind(module)
    if kind is None or method not in ("__call__", "attend"):
        return call(*args, **kwargs)
    own = module.variables.get("params", {})
    node = own.get("embedding" if kind is linen.Embed else "kernel")
    if not isinstance(node, LoRA):
        return call(*args, **kwargs)
    form = node.base.form
    plain = {**own, form.weight: node.base.values}
    bare = module.clone(parent=None, name=None)
    args, kwargs = _positional(args, kwargs)
    y = bare.apply({"params": plain}, *args, method=method, **kwargs)
    if method == "attend":
        return y + form.attend(node, args[0].astype(y.dtype))

    def twin(x: Array, window: Array) -> Array:
        other = module.clone(
            parent=None, name=None, features=window.shape[-1], use_bias=False
        )
        return other.apply({"params": {"kernel": window}}, x)

    return y + form.update(node, args[0], y.dtype, twin).astype(y.dtype)

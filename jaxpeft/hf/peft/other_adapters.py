"""Adapters on the disk that are no LoRA: (IA)^3, VeRA, OFT as PEFT's, bottlenecks.

All are a folder with `adapter_config.json` and `adapter_model.safetensors`, whose keys
are PEFT's prefix, the module's name and the tensor's. For a bottleneck they are
`bottleneck_down.weight` (size, out), `bottleneck_down.bias` (size),
`bottleneck_up.weight` (out, size) and `bottleneck_up.bias` (out), with `peft_type`
BOTTLENECK and `activation` in the config.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.bottleneck import ACTIVATIONS, Bottleneck
from jaxpeft.adapters.ia3 import IA3, is_feedforward
from jaxpeft.adapters.oft import OFT
from jaxpeft.adapters.vera import VeRA
from jaxpeft.adapters.vocabulary import HEAD_LEAF, closed, with_head
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft import adapter_config, oft_form, saved_weights
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.peft.form import SCALE, Form, plain_forms
from jaxpeft.hf.peft.modules import PREFIX, Module, linear_modules, targets
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig


def _ia3(
    base: Any, stacks: Mapping[str, Any], scale: Any, name: str, cfg: Any, shared: Any
) -> IA3:
    return IA3(base, stacks["gain"], scale, _is_feedforward([name], cfg))


def _is_feedforward(modules: Sequence[str], config: Mapping[str, Any]) -> bool:
    named = config.get("feedforward_modules") or []
    if not isinstance(named, str | list) or not all(isinstance(n, str) for n in named):
        raise InputError(
            f"{adapter_config.CONFIG}: feedforward_modules: found {named!r}; it must "
            "be a list of names or a regular expression"
        )
    return is_feedforward(modules, named)


def _feedforward(nodes: Mapping[str, Any], modules: Set[str]) -> dict[str, Any]:
    """PEFT wants the names of feed-forward modules to be among those of all."""
    inner = {name for name, node in nodes.items() if node.feedforward}
    outer, names = targets(set(nodes) - inner, modules), targets(inner, modules)
    if isinstance(outer, str) or isinstance(names, str):
        everything: list[str] | str = targets(set(nodes), modules)
    else:
        everything = sorted(outer + names)
    return {
        "target_modules": everything,
        "feedforward_modules": names,
        "init_ia3_weights": True,
    }


def _bottleneck(
    base: Any,
    stacks: Mapping[str, Any],
    scale: Any,
    name: str,
    config: Any,
    shared: Any,
) -> Bottleneck:
    kind = config.get("activation")
    if kind not in ACTIVATIONS:
        raise InputError(
            f"{adapter_config.CONFIG}: activation: found {kind!r}; handled are "
            + ", ".join(ACTIVATIONS)
        )
    return Bottleneck(base, **stacks, scale=scale, activation=kind)


VERA_A, VERA_B = "base_model.vera_A", "base_model.vera_B"


def _vera(
    base: Any,
    stacks: Mapping[str, Any],
    scale: Any,
    name: str,
    config: Any,
    shared: Mapping[str, np.ndarray],
) -> VeRA:
    a, b, (d_in, d_out) = shared[VERA_A], shared[VERA_B], base.shape[-2:]
    dropout, seed = config.get("vera_dropout"), config.get("projection_prng_key")
    for key, value in (("vera_dropout", dropout), ("projection_prng_key", seed)):
        if value is not None and type(value) not in (int, float):
            raise InputError(
                f"{adapter_config.CONFIG}: {key}: found {value!r}; it must be a number"
            )
    if a.shape[-1] < d_in or b.shape[0] < d_out:
        raise InputError(
            f"{adapter_config.WEIGHTS}: {VERA_A!r} {a.shape} and {VERA_B!r} {b.shape} "
            f"are too small for {name!r}, {d_in} x {d_out}: the adapter was made for "
            "another base; set model.path to that"
        )
    return VeRA(
        base,
        a=jnp.asarray(a[:, :d_in].T),
        b=jnp.asarray(b[:d_out].T),
        scale=scale,
        dropout=float(dropout or 0.0),
        seed=int(seed or 0),
        **stacks,
    )


def _vera_settings(nodes: Mapping[str, Any], _: Set[str]) -> dict[str, Any]:
    node = next(iter(nodes.values()))
    return {
        "r": node.a.shape[-1],
        "vera_dropout": node.dropout,
        "projection_prng_key": node.seed,
        "save_projection": True,
        "bias": "none",
        "init_weights": True,
    }


def _vera_projections(nodes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The widest parts of the two matrices that all modules share."""
    sides = [
        [np.asarray(node.a.T, np.float32) for node in nodes.values()],
        [np.asarray(node.b.T, np.float32) for node in nodes.values()],
    ]
    a = max(sides[0], key=lambda m: m.shape[1])
    b = max(sides[1], key=lambda m: m.shape[0])
    for name, node in nodes.items():
        d_in, d_out = node.shape[-2:]
        same_a = np.array_equal(np.asarray(node.a).T, a[:, :d_in])
        if not same_a or not np.array_equal(np.asarray(node.b).T, b[:d_out]):
            raise InputError(
                f"{name}: its projections are no part of those of the other modules; "
                "make all of them by one adapters.inject"
            )
    return {VERA_A: np.ascontiguousarray(a), VERA_B: np.ascontiguousarray(b)}


FORMS: dict[type, Form] = {
    OFT: oft_form.FORM,
    VeRA: Form(
        "VERA",
        {"lambda_d": "vera_lambda_d", "lambda_b": "vera_lambda_b"},
        _vera_settings,
        _vera,
        _vera_projections,
        (VERA_A, VERA_B),
    ),
    IA3: Form("IA3", {"gain": "ia3_l"}, _feedforward, _ia3),
    Bottleneck: Form(
        "BOTTLENECK",
        {
            "down": "bottleneck_down.weight",
            "down_bias": "bottleneck_down.bias",
            "up": "bottleneck_up.weight",
            "up_bias": "bottleneck_up.bias",
        },
        lambda nodes, _: {"activation": next(iter(nodes.values())).activation},
        _bottleneck,
    ),
}
FORMS |= plain_forms(FORMS.keys())
TYPES = {form.peft_type: kind for kind, form in FORMS.items()}


def kind_of(params: Mapping[str, Any]) -> type | None:
    """The kind of the adapters in `params`, if it is one of `FORMS`."""
    kinds = {type(node) for node in kernel.nodes(params).values()}
    return next((kind for kind in FORMS if kind in kinds), None)


def save(
    params: Mapping[str, Any], directory: Path, cfg: ModelConfig, base: str | None
) -> None:
    """Writes the adapters of `params`, and reads them back to compare.

    Args:
        params: The params mapping with adapters of one kind in `FORMS`.
        directory: The folder to write.
        cfg: The model's configuration.
        base: The model's folder or hub id, noted in the config.

    Raises:
        InputError: Where the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    kind = kind_of(params)
    assert kind is not None
    form, modules = FORMS[kind], linear_modules(cfg)
    nodes = {n: k for n, k in kernel.nodes(params).items() if isinstance(k, kind)}
    written: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        node = nodes.get(module.path)
        at = () if module.layer is None else module.layer
        if node is None or np.asarray(node.scale)[at] == 0:
            continue
        written[name] = node
        for field, suffix in form.suffixes.items():
            values = np.asarray(getattr(node, field), np.float32)[at]
            tensors[f"{PREFIX}{name}.{suffix}"] = _stored(node, field, values)
    tensors.update(form.shared(written))
    tensors.update(saved_weights.tensors(params, cfg))
    content = {
        "peft_type": form.peft_type,
        "task_type": adapter_config.task_type(cfg),
        "base_model_name_or_path": base,
        "target_modules": targets(set(written), set(modules)),
        "fan_in_fan_out": cfg.conv1d,
        "inference_mode": True,
        **form.settings(written, set(modules)),
    }
    beside = saved_weights.settings(params, cfg)
    # PEFT knows `bias` of few methods, and remarks on keys that it does not know.
    content.update({k: v for k, v in beside.items() if k in content or v != "none"})
    with writing(directory, tensors, content) as partial:
        again = load(params, partial, cfg, content)
        saved_weights.same(params, again, directory)
        read = kernel.nodes(again)
        for name, node in nodes.items():
            used = np.asarray(node.scale) != 0
            for field in form.suffixes:
                mine, other = (
                    np.asarray(getattr(n, field)) for n in (node, read[name])
                )
                if not np.array_equal(mine[used], other[used]):
                    raise RuntimeError(f"{directory}: {name} was not written as it is")


def load(
    params: Mapping[str, Any],
    directory: Path,
    cfg: ModelConfig,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    """The params with the adapter of a folder in its places, float32.

    Args:
        params: The params mapping of the base.
        directory: The adapter's folder.
        cfg: The model's configuration.
        content: What the folder's config holds, of a kind in `TYPES`.

    Raises:
        InputError: Where file, config and base do not belong together.
    """
    kind = TYPES[content["peft_type"]]
    form, modules = FORMS[kind], linear_modules(cfg)
    file = SafetensorsFile(directory / adapter_config.WEIGHTS)
    left, problems = set(file.tensors), []
    problems += [
        f"{file.path}: {key!r} is missing, without which this adapter says nothing; "
        "save it with PEFT's save_projection true"
        for key in form.shared_keys
        if key not in left
    ]
    left -= set(form.shared_keys)
    config = adapter_config.beside(directory / adapter_config.CONFIG, content)
    params, whole, used = saved_weights.read(params, file, config, cfg)
    left -= used
    stacks: dict[str, list[str]] = {}
    for name, module in modules.items():
        wanted = {f"{PREFIX}{name}.{suffix}" for suffix in form.suffixes.values()}
        if wanted <= left:
            left -= wanted
            stacks.setdefault(module.path, []).append(name)
    problems += [
        f"{file.path}: {key!r} belongs to no linear module of this base, or others of "
        "its module are missing; use the base that the adapter was made for"
        for key in sorted(left)
    ]
    if not stacks and not problems:
        problems.append(f"{file.path}: adapts nothing; download or export it again")
    if problems:
        raise InputError(*problems[:10])
    if HEAD_LEAF in stacks:
        params = with_head(params)
    kernels = dict(tree.walk(params))
    changes = {
        path: _node(kernels[path], names, modules, form, content, file)
        for path, names in stacks.items()
    }
    tied = cfg.tie_word_embeddings
    return closed(params, {**whole, **changes}, tied=tied, one=False)


def _node(
    base: Any,
    names: list[str],
    modules: Mapping[str, Module],
    form: Form,
    content: Mapping[str, Any],
    file: SafetensorsFile,
) -> Any:
    """The adapters over one kernel, or stack of them, of the modules `names`."""
    base = base.base if isinstance(base, tuple(FORMS)) else base
    layers = base.shape[:-2]
    scale = np.zeros(layers, np.float32)
    whole: dict[str, np.ndarray] = {}
    for name in names:
        at = () if modules[name].layer is None else modules[name].layer
        scale[at] = 1.0
        for field, suffix in form.suffixes.items():
            key = f"{PREFIX}{name}.{suffix}"
            values = _read(field, _tensor(file, key))
            whole.setdefault(field, np.zeros((*layers, *values.shape), np.float32))
            if whole[field].shape[len(layers) :] != values.shape:
                raise InputError(
                    f"{file.path}: {key!r} has another shape than its like"
                )
            whole[field][at] = values
    d_in, wanted = base.shape[-2:]
    if "gain" in whole and _is_feedforward(names, content):
        wanted = d_in
    widths = [whole[f].shape[-1] for f in ("gain", "up_bias", "lambda_b") if f in whole]
    if widths and widths[0] != wanted:
        raise InputError(
            f"{file.path}: {names[0]!r} is {widths[0]} wide, this base needs {wanted}: "
            "the adapter was made for another one; set model.path to that"
        )
    stacks = {field: jnp.asarray(values) for field, values in whole.items()}
    shared = {key: _tensor(file, key) for key in form.shared_keys}
    return form.build(base, stacks, jnp.asarray(scale), names[0], content, shared)


def _tensor(file: SafetensorsFile, key: str) -> np.ndarray:
    """A tensor as float32. Raises InputError where it is no finite float."""
    entry = file.tensors[key]
    if entry.dtype not in FLOATS:
        raise InputError(
            f"{file.path}: {key!r} has dtype {entry.dtype}; handled are "
            + ", ".join(FLOATS)
        )
    values = file.view(key)
    layout.require_finite(values, f"{file.path}: {key!r}")
    return np.asarray(values, np.float32)


def _stored(node: Any, field: str, values: np.ndarray) -> np.ndarray:
    """A layer's tensor as torch lays it out."""
    if field == SCALE:
        return values[None]
    if field == "gain":
        return values[None, :] if node.feedforward else values[:, None]
    return np.ascontiguousarray(values.T) if values.ndim == 2 else values


def _read(field: str, values: np.ndarray) -> np.ndarray:
    """Undoes `_stored`."""
    return values.reshape(-1) if field == "gain" else values.T

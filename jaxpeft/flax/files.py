"""The adapters of a Flax model on the disk, in PEFT's format as far as it reaches.

The folder and its keys are PEFT's. A weight with more axes than two is the matrix that
its module makes of it; what PEFT has no form for, layers stacked in one weight and
batches of matrices, keeps those axes first. So where a torch model has modules of the
same names and kinds, PEFT loads the folder.
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft.adapters.lora import LoRA
from jaxpeft.errors import InputError
from jaxpeft.flax.forms import Contraction, Convolution, Form, Lookup
from jaxpeft.hf import layout
from jaxpeft.hf.peft import adapter_config
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.peft.modules import PREFIX
from jaxpeft.hf.peft.save import Adapter, alpha_of, lora_config
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile

MOST_PROBLEMS = 10
# The names of A and B after the module's.
LINEAR = ("lora_A.weight", "lora_B.weight")
SUFFIXES: dict[type, tuple[str, str]] = {
    Contraction: LINEAR,
    Convolution: LINEAR,
    Lookup: ("lora_embedding_A", "lora_embedding_B"),
}


def save(
    nodes: Mapping[str, LoRA],
    forms: Mapping[str, Form],
    modules: Collection[str],
    directory: str | Path,
) -> None:
    """Writes {path: adapter} as a folder of PEFT's.

    What began as a part of the base (PiSSA, OLoRA) becomes a plain LoRA of twice the
    rank. The files are read back and every value compared before they replace older
    ones.

    Args:
        nodes: {dotted path of the module: adapter}.
        forms: {path: how the module's weight is a matrix}, of those modules at least.
        modules: The paths of all modules that could have an adapter.
        directory: The folder to write.

    Raises:
        InputError: Where there is no adapter or the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    if not nodes:
        raise InputError("the model holds no adapter; put one in with inject")
    directory = Path(directory)
    nodes = {path: node.plain() for path, node in nodes.items()}
    rslora = all(node.use_rslora for node in nodes.values())
    tensors, summaries = {}, {}
    for path, node in nodes.items():
        a, b = _stored(forms[path], np.asarray(node.a), np.asarray(node.b))
        tensors.update(zip(_keys(path, forms[path]), (a, b), strict=True))
        scale = float(np.asarray(node.scale).flat[0])
        alpha = alpha_of(scale, node.rank, node, rslora)
        summaries[path] = Adapter(np.empty((node.rank, 0)), b, node.rank, alpha)
    dropout = max(node.dropout for node in nodes.values())
    config = {
        **lora_config(summaries, dict.fromkeys(modules), rslora, dropout, None),
        "task_type": None,
        "target_modules": _targets(list(nodes), modules),
    }
    with writing(directory, tensors, config) as partial:
        for path, read in load(forms, _shapes(nodes, forms), partial).items():
            pairs = ((getattr(nodes[path], f), getattr(read, f)) for f in "ab")
            if not all(np.array_equal(x, y) for x, y in pairs):
                raise RuntimeError(f"{directory}: {path} was not written as it is")


def load(
    forms: Mapping[str, Form], shapes: Mapping[str, tuple], directory: str | Path
) -> dict[str, LoRA]:
    """The adapters of a folder, {path: adapter}, their `base` None.

    Args:
        forms: {dotted path: how the module's weight is a matrix} of every module that
            can be adapted.
        shapes: {path: the weight's shape}, axes of stacked layers included.
        directory: The adapter's folder.

    Raises:
        InputError: Where file, config and model do not belong together.
    """
    directory = Path(directory)
    config = adapter_config.read(directory)
    path = directory / adapter_config.WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: missing; save the adapter again")
    if config.use_dora:
        raise InputError(
            f"{directory / adapter_config.CONFIG}: use_dora: found true; a model of "
            "one's own takes LoRA alone: merge the adapter where it was made"
        )
    file = SafetensorsFile(path)
    chosen = [name for name in forms if _is_targeted(name, forms[name], config, file)]
    _check(chosen, forms, shapes, config, file)
    nodes = {}
    for name in chosen:
        views = [file.view(key) for key in _keys(name, forms[name])]
        for key, values in zip(_keys(name, forms[name]), views):
            layout.require_finite(values, f"{path}: {key!r}")
        a, b = _matrices(forms[name], *(np.asarray(v, np.float32) for v in views))
        nodes[name] = LoRA(
            base=None,
            a=jnp.asarray(a),
            b=jnp.asarray(b),
            scale=jnp.full(a.shape[:-2], config.scale(name), jnp.float32),
            dropout=float(config.lora_dropout),
            lora_alpha=float(config.lora_alpha),
            use_rslora=config.use_rslora,
        )
    return nodes


def _targets(chosen: list[str], modules: Collection[str]) -> list[str] | str:
    """What selects exactly `chosen`, among the paths of all modules.

    It is their names, or an expression where an entry of a list would also mean the end
    of another name.
    """
    others = set(modules) - set(chosen)
    if any(other.endswith(f".{name}") for other in others for name in chosen):
        return "|".join(map(re.escape, chosen))
    return sorted(chosen)


def _is_targeted(name: str, form: Form, config: Any, file: SafetensorsFile) -> bool:
    wanted = config.target_modules
    if wanted is None or (isinstance(wanted, str) and wanted.lower() == "all-linear"):
        return any(key in file.tensors for key in _keys(name, form))
    return config.targets(name)


def _check(
    chosen: list[str],
    forms: Mapping[str, Form],
    shapes: Mapping[str, tuple],
    config: Any,
    file: SafetensorsFile,
) -> None:
    """Raises InputError with what in the file is not as config and model say."""
    expected = {}
    for name in chosen:
        layers = shapes[name][: len(shapes[name]) - len(forms[name].shape)]
        *lead, d_in, d_out = (*layers, *forms[name].matrix_shape())
        a, b = (*lead, d_in, config.rank(name)), (*lead, config.rank(name), d_out)
        stored = _stored(forms[name], np.empty(a, np.bool_), np.empty(b, np.bool_))
        keys = _keys(name, forms[name])
        expected.update({key: x.shape for key, x in zip(keys, stored)})
    problems = [
        f"{key!r} is missing, though the config targets its module; restore both files"
        for key in expected
        if key not in file.tensors
    ]
    problems += [
        f"{key!r} belongs to no module of this model that the config targets; use the "
        "model that the adapter was made for"
        for key in file.tensors
        if key not in expected
    ]
    problems += [
        f"{key!r} has dtype {tensor.dtype} and shape {tensor.shape}, expected a float "
        f"of shape {expected[key]}; use the model that the adapter was made for"
        for key, tensor in file.tensors.items()
        if key in expected
        and (tensor.shape != expected[key] or tensor.dtype not in FLOATS)
    ]
    if not chosen and not problems:
        problems = ["it adapts nothing; save it again"]
    if problems:
        more = len(problems) - MOST_PROBLEMS
        listed = [f"{file.path}: {problem}" for problem in problems[:MOST_PROBLEMS]]
        raise InputError(*listed, *([f"... and {more} more"] if more > 0 else []))


def _keys(path: str, form: Form) -> tuple[str, ...]:
    module = f"{PREFIX}{path}." if path else PREFIX
    return tuple(module + suffix for suffix in SUFFIXES[type(form)])


def _shapes(nodes: Mapping[str, LoRA], forms: Mapping[str, Form]) -> dict[str, tuple]:
    """The shapes of the adapted weights, of which the forms leave out the layers."""
    shapes = {}
    for path, node in nodes.items():
        lead = node.a.ndim - len(forms[path].matrix_shape())
        shapes[path] = (*node.a.shape[:lead], *forms[path].shape)
    return {**{path: form.shape for path, form in forms.items()}, **shapes}


def _stored(form: Form, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A and B as torch has them, of (*lead, d_in, r) and (*lead, r, d_out)."""
    a, b = np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2)
    if isinstance(form, Convolution):
        *window, width, _ = form.shape
        a = a.reshape(*a.shape[:-1], *window, width)
        a = np.moveaxis(a, -1, -1 - len(window))
        b = b.reshape(*b.shape, *(1 for _ in window))
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _matrices(form: Form, a: np.ndarray, b: np.ndarray) -> tuple:
    """Undoes `_stored`."""
    if isinstance(form, Convolution):
        window = len(form.shape) - 2
        a = np.moveaxis(a, -1 - window, -1)
        lead = a.shape[: a.ndim - window - 1]
        a = a.reshape(*lead, math.prod(form.shape[:-1]))
        b = b.reshape(b.shape[: b.ndim - window])
    return np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2)

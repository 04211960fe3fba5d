"""Writing the LoRA nodes of a params mapping as a PEFT adapter."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.dora import DoRA
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.saved import Saved
from jaxpeft.errors import InputError
from jaxpeft.hf import other_adapters, saved_weights
from jaxpeft.hf.adapter_folder import writing
from jaxpeft.hf.modules import Module, last, lora_modules, shortened
from jaxpeft.hf.peft_load import keys, load_adapter
from jaxpeft.models.spec import ModelConfig


class Adapter(NamedTuple):
    """One module's adapter in PEFT's layout, and the alpha that gives its scale."""

    a: np.ndarray  # (r, in) float32
    b: np.ndarray  # (out, r) float32
    alpha: float
    magnitude: np.ndarray | None = None  # of a DoRA, (out,) float32
    embedding: bool = False

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def tensors(self, module: str) -> dict[str, np.ndarray]:
        """What the safetensors file holds of it."""
        values = [self.a, self.b]
        values += [] if self.magnitude is None else [self.magnitude]
        names = keys(module, self.magnitude is not None, self.embedding)
        return dict(zip(names, values, strict=True))


def save_adapter(
    params: Mapping[str, Any],
    directory: str | Path,
    cfg: ModelConfig,
    base: str | Path | None = None,
) -> None:
    """Writes LoRA or DoRA nodes so that PEFT loads them unmodified.

    What began as a part of the base (PiSSA, OLoRA) becomes a plain LoRA of twice the
    rank, for the base as it is. Weights of the base that trained go along as PEFT's
    modules_to_save and biases. Other adapters go into the files that `other_adapters`
    describes.
    base: the model's folder or hub id, noted in the config. Layers that an adapter
    leaves out (scale 0) are not written. The files are reopened and every tensor
    compared before they replace older ones. Raises InputError where there is nothing to
    write, an adapter has no such form, or the folder is unwritable; NumericsError where
    a weight is not finite.
    """
    directory = Path(directory)
    if other_adapters.kind_of(params) is not None:
        name = None if base is None else str(base)
        other_adapters.save(params, directory, cfg, name)
        return
    params = tree.replace(params, {n: _plain(k) for n, k in _nodes(params).items()})
    modules = lora_modules(cfg)
    rslora, adapters = _adapters(params, modules)
    dropout = max(node.dropout for node in _nodes(params).values())
    config = lora_config(adapters, modules, rslora, dropout, base)
    config.update(saved_weights.settings(params, cfg))
    tensors = saved_weights.tensors(params, cfg)
    for name, adapter in adapters.items():
        tensors.update(adapter.tensors(name))
    with writing(directory, tensors, config) as partial:
        _verify(params, partial, cfg)


def _adapters(
    params: Mapping[str, Any], modules: Mapping[str, Module]
) -> tuple[bool, dict[str, Adapter]]:
    """(use_rslora, {module name: adapter}) of what is adapted, in the model's order."""
    nodes = kernel.nodes(params)
    others = [
        n
        for n, k in nodes.items()
        if hasattr(k, "TRAINABLE") and not isinstance(k, LoRA | DoRA | Saved)
    ]
    loras = _nodes(params)
    strangers = sorted(set(loras) - {module.path for module in modules.values()})
    if others or strangers:
        raise InputError(
            *(
                f"{name}: {type(nodes[name]).__name__} cannot be written as a LoRA; "
                "export the merged model instead"
                for name in others
            ),
            *(
                f"{name}: no linear module of the model that the config describes; "
                "save with the model's own config"
                for name in strangers
            ),
        )
    rslora = bool(loras) and all(node.use_rslora for node in loras.values())
    fields = ("a", "b", "scale", "magnitude")
    host = {
        path: [
            None if x is None else np.asarray(x, np.float32)
            for x in (getattr(node, name, None) for name in fields)
        ]
        for path, node in loras.items()
    }
    found = {}
    for name, module in modules.items():
        if module.path not in host:
            continue
        at = () if module.layer is None else module.layer
        a, b, scale, magnitude = (
            None if x is None else x[at] for x in host[module.path]
        )
        assert a is not None and b is not None and scale is not None
        if scale != 0:
            node = loras[module.path]
            rank = node.ranks[module.layer or 0] if node.ranks else a.shape[1]
            alpha = alpha_of(float(scale), rank, node, rslora)
            a, b = a[:, :rank], b[:rank]
            found[name] = Adapter(a.T, b.T, alpha, magnitude, module.embedding)
    if not found:
        raise InputError(
            "the params hold no LoRA with a scale other than 0; put adapters in with "
            "adapters.inject(params, rules, key), lora_alpha not 0"
        )
    return rslora, found


def _nodes(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have such a form."""
    return {
        name: node
        for name, node in kernel.nodes(params).items()
        if isinstance(node, LoRA | DoRA)
    }


def _plain(node: Any) -> Any:
    return node.plain() if isinstance(node, LoRA) else node


def alpha_of(scale: float, rank: int, node: Any, rslora: bool) -> float:
    """The lora_alpha that gives `scale`: the node's own wherever it does."""
    divisor = math.sqrt(rank) if rslora else rank
    if np.float32(node.lora_alpha / divisor) == np.float32(scale):
        alpha = node.lora_alpha
    else:
        alpha = scale * divisor
    return int(alpha) if float(alpha).is_integer() else alpha


def lora_config(
    adapters: Mapping[str, Adapter],
    modules: Collection[str],
    rslora: bool,
    dropout: float,
    base: str | Path | None,
) -> dict[str, Any]:
    """The content of adapter_config.json; `modules` are the names of all there are."""
    ranks = {name: adapter.rank for name, adapter in adapters.items()}
    alphas = {name: adapter.alpha for name, adapter in adapters.items()}
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": shortened(set(adapters), set(modules)),
        "use_rslora": rslora,
        "use_dora": any(a.magnitude is not None for a in adapters.values()),
        "rank_pattern": _patterns(ranks, r),
        "alpha_pattern": _patterns(alphas, alpha),
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """{name: value} of the modules that differ from the default, names shortened."""
    together: dict[str, set[Any]] = {}
    for name, value in values.items():
        together.setdefault(last(name), set()).add(value)
    return {
        last(name) if len(together[last(name)]) == 1 else name: value
        for name, value in values.items()
        if value != default
    }


def _verify(params: Mapping[str, Any], directory: Path, cfg: ModelConfig) -> None:
    """Reads the adapter back over the same base: every value must be the same.

    PEFT only warns about keys that it cannot place, and then serves the bare base.
    """
    loras = _nodes(params)
    bare = tree.replace(params, {name: node.base for name, node in loras.items()})
    read_back = load_adapter(bare, directory, cfg)
    saved_weights.same(params, read_back, directory)
    found = kernel.nodes(read_back)
    for name, node in loras.items():
        scale = np.asarray(node.scale)
        adapted = scale != 0
        if not adapted.any():
            continue
        read = found[name]
        same = all(
            np.array_equal(np.asarray(mine)[adapted], np.asarray(other)[adapted])
            for mine, other in (
                (getattr(node, field), getattr(read, field))
                for field in ("a", "b", "magnitude")
                if hasattr(node, field)
            )
        )
        if not same or not np.allclose(scale, np.asarray(read.scale), rtol=1e-6):
            raise RuntimeError(f"{directory}: {name} was not written as it should be")

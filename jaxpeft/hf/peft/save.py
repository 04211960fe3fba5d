"""Writing the LoRA nodes of a params mapping as a PEFT adapter."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpeft import kernel, tree
from jaxpeft.adapters.dora import DoRA
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.virtual import virtual
from jaxpeft.errors import InputError
from jaxpeft.hf.peft import (
    adapter_config,
    other_adapters,
    saved_weights,
    virtual_tokens,
    vocabulary,
)
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.peft.load import keys, load_adapter
from jaxpeft.hf.peft.modules import (
    Module,
    last,
    lora_modules,
    places,
    shortened,
    targets,
)
from jaxpeft.hf.peft.writable import check_writable
from jaxpeft.models.spec import ModelConfig


class Adapter(NamedTuple):
    """One module's adapter in PEFT's layout, and the alpha that gives its scale.

    Attributes:
        a: A, (r, in) float32, of experts one after another.
        b: B, (out, r) float32, of experts interleaved.
        rank: The rank, of one expert.
        alpha: The `lora_alpha` that gives the scale.
        magnitude: The magnitudes of a DoRA, (out,) float32.
        embedding: Whether the module is an embedding.
    """

    a: np.ndarray
    b: np.ndarray
    rank: int
    alpha: float
    magnitude: np.ndarray | None = None
    embedding: bool = False

    def tensors(self, place: str) -> dict[str, np.ndarray]:
        """The adapter's tensors in the safetensors file, {key: values}.

        Args:
            place: The name before the tensors, see `keys`.
        """
        values = [self.a, self.b]
        values += [] if self.magnitude is None else [self.magnitude]
        names = keys(place, self.magnitude is not None, self.embedding)
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
    modules_to_save and biases. Other adapters go into the files that `other_adapters`,
    `virtual_tokens` and `saved_weights` describe. Layers that an adapter leaves out
    (scale 0) are not written. The files are reopened and every tensor compared before
    they replace older ones.

    Args:
        params: The params mapping with its adapters.
        directory: The folder to write.
        cfg: The model's configuration.
        base: The model's folder or hub id, noted in the config.

    Raises:
        InputError: Where there is nothing to write, an adapter has no such form, or the
            folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    directory = Path(directory)
    name = None if base is None else str(base)
    check_writable(params, cfg)
    if other_adapters.kind_of(params) is not None:
        other_adapters.save(params, directory, cfg, name)
        return
    if virtual(params):
        virtual_tokens.save(params, directory, cfg, name)
        return
    trained = [k for k in kernel.nodes(params).values() if kernel.is_adapter(k)]
    if trained and all(isinstance(node, Saved) for node in trained):
        saved_weights.save_biases(params, directory, cfg, name)
        return
    params = tree.replace(params, {n: _plain(k) for n, k in _nodes(params).items()})
    modules = lora_modules(cfg)
    rslora, adapters = _adapters(params, modules)
    dropout = max(node.dropout for node in _nodes(params).values())
    config = {
        **lora_config(
            adapters,
            {name: module.parameter for name, module in modules.items()},
            rslora,
            dropout,
            base,
        ),
        "task_type": adapter_config.task_type(cfg),
        **saved_weights.settings(params, cfg),
        **vocabulary.settings(params, cfg),
        "fan_in_fan_out": cfg.conv1d,
    }
    tensors = saved_weights.tensors(params, cfg)
    for name, place in places(adapters, modules).items():
        tensors.update(adapters[name].tensors(place))
    with writing(directory, tensors, config) as partial:
        _verify(params, partial, cfg)


def _adapters(
    params: Mapping[str, Any], modules: Mapping[str, Module]
) -> tuple[bool, dict[str, Adapter]]:
    """(use_rslora, {module name: adapter}) of what is adapted, in the model's order."""
    loras = _nodes(params)
    rslora = bool(loras) and all(node.use_rslora for node in loras.values())
    fields = ("a", "b", "scale", "magnitude")
    host = {
        path: [
            None if x is None else np.asarray(x, np.float32)
            for x in (getattr(node, name, None) for name in fields)
        ]
        for path, node in loras.items()
    }
    adapters = {}
    for name, module in modules.items():
        if module.path not in host:
            continue
        at = () if module.layer is None else module.layer
        a, b, scale, magnitude = (
            None if x is None else x[at] for x in host[module.path]
        )
        assert a is not None and b is not None and scale is not None
        if scale.any():
            node = loras[module.path]
            rank = node.ranks[_first(module)] if node.ranks else a.shape[-1]
            alpha = alpha_of(float(scale.flat[0]), rank, node, rslora)
            a, b = a[..., :rank], b[..., :rank, :]
            adapters[name] = Adapter(
                np.swapaxes(a, -1, -2).reshape(-1, module.d_in),
                b.T.reshape(module.d_out, -1),
                rank,
                alpha,
                magnitude,
                module.embedding,
            )
    if not adapters:
        raise InputError(
            "the params hold no LoRA with a scale other than 0; put adapters in with "
            "adapters.inject(params, rules, key), lora_alpha not 0"
        )
    return rslora, adapters


def _nodes(params: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted name: node} of the LoRA and DoRA nodes."""
    return {
        name: node
        for name, node in kernel.nodes(params).items()
        if isinstance(node, LoRA | DoRA)
    }


def _first(module: Module) -> int:
    """Where a layer's ranks begin, one for each expert."""
    return (module.layer or 0) * (module.experts or 1)


def _plain(node: Any) -> Any:
    return node.plain() if isinstance(node, LoRA) else node


def alpha_of(scale: float, rank: int, node: Any, rslora: bool) -> float:
    """The lora_alpha that gives `scale`: the node's own, else the shortest that does.

    Args:
        scale: The factor before `a @ b`.
        rank: The rank of the layer.
        node: The adapter.
        rslora: Whether the scale is alpha / sqrt(rank) in place of alpha / rank.

    Returns:
        The alpha, an int where it is whole.
    """
    divisor = math.sqrt(rank) if rslora else rank
    # The scale is float32: of the numbers that give it, the one with the fewest digits.
    short = (float(f"{scale * divisor:.{digits}g}") for digits in range(1, 18))
    for alpha in (node.lora_alpha, *short):
        if np.float32(alpha / divisor) == np.float32(scale):
            return int(alpha) if float(alpha).is_integer() else alpha
    return scale * divisor


def lora_config(
    adapters: Mapping[str, Adapter],
    modules: Mapping[str, str | None],
    rslora: bool,
    dropout: float,
    base: str | Path | None,
) -> dict[str, Any]:
    """The content of adapter_config.json for a LoRA or DoRA.

    Args:
        adapters: {module name: adapter} of what is adapted.
        modules: {name of each module there is: the name of the bare parameter that it
            stands for, or None}.
        rslora: Whether alpha gives the scale as alpha / sqrt(r).
        dropout: The probability with which entries of the input are zeroed in training.
        base: The model's folder or hub id.
    """
    called = {name: modules[name] or name for name in adapters}
    ranks = {called[name]: adapter.rank for name, adapter in adapters.items()}
    alphas = {called[name]: adapter.alpha for name, adapter in adapters.items()}
    parameters = {name for name in adapters if modules[name]}
    everything = {name for name, parameter in modules.items() if not parameter}
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    wrapped = {}
    if parameters:  # a key that readers for other models need not know
        chosen = {called[name] for name in parameters}
        names = {parameter for parameter in modules.values() if parameter}
        wrapped = {"target_parameters": shortened(chosen, names)}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": r,
        "lora_alpha": alpha,
        # PEFT refuses to load parameters' adapters with any.
        "lora_dropout": 0.0 if parameters else dropout,
        "bias": "none",
        "target_modules": targets(set(adapters) - parameters, everything),
        **wrapped,
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
    read_nodes = kernel.nodes(read_back)
    for name, node in loras.items():
        scale = np.asarray(node.scale)
        adapted = scale != 0
        if not adapted.any():
            continue
        read = read_nodes[name]
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

"""Whether adapters have a place in PEFT's format: asked before they train.

What is refused here would otherwise be refused when hours of training are to be
written. `save_adapter` asks the same question, so that nothing else is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxpeft import kernel, tree
from jaxpeft.adapters.dora import DoRA
from jaxpeft.adapters.lora import LoRA
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.tokens import Tokens
from jaxpeft.adapters.virtual import PREFIX, PROMPT, Virtual
from jaxpeft.errors import InputError
from jaxpeft.hf.peft.modules import linear_modules, lora_modules
from jaxpeft.hf.peft.other_adapters import FORMS
from jaxpeft.hf.peft.saved_weights import BIAS
from jaxpeft.hf.peft.vocabulary import ENDS, is_shared
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import specs_with_head


def _linear(cfg: ModelConfig) -> set[str]:
    return {module.path for module in linear_modules(cfg).values()}


def _linear_and_embedding(cfg: ModelConfig) -> set[str]:
    return {module.path for module in lora_modules(cfg).values()}


def _weights(cfg: ModelConfig) -> set[str]:
    return {path for path, _ in tree.walk(specs_with_head(cfg))}


# The kinds of nodes that a folder can hold: (config of the model) -> the dotted names
# of the weights in whose places they can be written.
PLACES: dict[type, Callable[[ModelConfig], set[str]]] = {
    LoRA: _linear_and_embedding,
    DoRA: _linear,
    **dict.fromkeys(FORMS, _linear),
    Saved: _weights,
    Tokens: lambda cfg: set(ENDS),
    Virtual: lambda cfg: {PROMPT, *PREFIX},
}


def check_writable(params: Mapping[str, Any], cfg: ModelConfig) -> None:
    """Checks that an adapter's folder has a place for the adapters of `params`.

    A folder is of one kind, beside which weights of the base can stand whole but for
    virtual tokens. Routers and experts are no linear modules to PEFT but parameters,
    which it gives LoRA alone.

    Args:
        params: The params that hold the adapters; shapes in place of values will do.
        cfg: The model's configuration.

    Raises:
        InputError: Where there is no such place.
    """
    nodes = {n: k for n, k in kernel.nodes(params).items() if kernel.is_adapter(k)}
    problems = _of_no_kind(nodes) or [*_misplaced(nodes, cfg), *_mixed(nodes)]
    problems = problems or _of_lora_alone(nodes, is_shared(params, cfg))
    if problems:
        raise InputError(*problems)


def _of_no_kind(nodes: Mapping[str, Any]) -> list[str]:
    kinds = {type(node): name for name, node in nodes.items()}
    return [
        f"{name}: {kind.__name__} has no form in an adapter's folder, so that it could "
        "not be saved once it is trained; use another method, name the class in its "
        "line of adapters.TABLE (node=...), or merge it into the model (adapters.merge)"
        for kind, name in kinds.items()
        if kind not in PLACES
    ]


def _misplaced(nodes: Mapping[str, Any], cfg: ModelConfig) -> list[str]:
    parameters = {m.path for m in lora_modules(cfg).values() if m.parameter}
    known = {kind: PLACES[kind](cfg) for kind in {type(k) for k in nodes.values()}}
    problems = []
    for name, node in nodes.items():
        if name in parameters and not isinstance(node, LoRA):
            problems.append(
                f"adapter.method: found {type(node).__name__} for "
                f"{name.removesuffix('.kernel')}; a router and experts can have a lora "
                "or lora_fa only: use that, or name the attention's modules in "
                "adapter.target_modules"
            )
        elif name not in known[type(node)]:
            problems.append(
                f"{name}: no module for a {type(node).__name__} in the model that the "
                "config describes; save with the model's own config"
            )
    return problems


def _mixed(nodes: Mapping[str, Any]) -> list[str]:
    """What keeps nodes that have places each from standing in one folder."""
    kinds = sorted({type(node).__name__ for node in nodes.values()})
    saved = [name for name, node in nodes.items() if isinstance(node, Saved)]
    others = [kind for kind in kinds if kind not in (Saved.__name__, Tokens.__name__)]
    if len(others) > 1 or (saved and others == [Virtual.__name__]):
        return [
            f"adapter.method: found {' and '.join(kinds)} in one model; an adapter's "
            "folder holds one kind: use one method for all modules"
        ]
    whole = [name for name in saved if not name.endswith(BIAS)]
    if whole and not others:
        module = whole[0].rpartition(".")[0]
        return [
            f"adapter.modules_to_save: {module} and all other modules that "
            "adapter.target_modules means are to train whole, which leaves nothing for "
            "an adapter; name others in target_modules, or use adapter.method full "
            "with these in its target_modules"
        ]
    return []


def _of_lora_alone(nodes: Mapping[str, Any], shared: bool) -> list[str]:
    """What PEFT has a place for in the folder of a LoRA or DoRA only."""
    kinds = {type(node) for node in nodes.values()}
    others = sorted(kind.__name__ for kind in kinds - {LoRA, DoRA, Saved, Tokens})
    keys = ["trainable_token_indices"] if Tokens in kinds else []
    keys += ["ensure_weight_tying"] if shared else []
    return [
        f"adapter.{key}: beside {kind}, and PEFT has it for LoRA and DoRA only; use "
        "one of them, or leave it out"
        for key in keys
        for kind in others or (["no LoRA"] if not kinds & {LoRA, DoRA} else [])
    ]

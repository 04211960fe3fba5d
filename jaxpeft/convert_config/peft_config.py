"""From PEFT's adapter_config.json to our section `adapter`."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.convert_config import files
from jaxpeft.convert_config.draft import Draft, Idle, Row, To, Without

_INIT = "is not built; choose true, gaussian, pissa, pissa_niter_N or olora"
INITS = (True, False, "gaussian", "pissa", "olora")
_RUN = "says nothing about training"
_VARIANT = "this variant is not built; plain lora or dora stands for it"
_OFF = (None, False, "", 0, [], {})

# For every method; a method's own keys come with it.
COMMON: dict[str, Row] = {
    "exclude_modules": To("adapter.exclude_modules"),
    "layers_to_transform": To("adapter.layers_to_transform"),
    "layers_pattern": Without("layers are found by their numbers", _OFF),
    "modules_to_save": To("adapter.modules_to_save"),
    "task_type": Idle("objective.name says this: sft, classification, ..."),
    "auto_mapping": Idle(_RUN),
    "peft_version": Idle(_RUN),
    "revision": Without("fetch that revision and name its folder in model.path", _OFF),
    "inference_mode": Idle(_RUN),
    "fan_in_fan_out": Idle("the model's family says this"),
    "target_parameters": Without("name modules in adapter.target_modules", _OFF),
}

LORA: dict[str, Row] = {
    "r": To("adapter.r"),
    "lora_alpha": To("adapter.lora_alpha"),
    "lora_dropout": To("adapter.lora_dropout"),
    "bias": To("adapter.bias"),
    "use_rslora": To("adapter.use_rslora"),
    "rank_pattern": To("adapter.rank_pattern"),
    "alpha_pattern": To("adapter.alpha_pattern"),
    "megatron_config": Idle(_RUN),
    "megatron_core": Idle(_RUN),
    "runtime_config": Idle(_RUN),
    "qalora_group_size": Idle("of QA-LoRA"),
    "loftq_config": Without(_INIT, _OFF),
    "eva_config": Without(_INIT, _OFF),
    "corda_config": Without(_INIT, _OFF),
    "lora_ga_config": Without(_INIT, _OFF),
    "trainable_token_indices": To("adapter.trainable_token_indices"),
    "layer_replication": Without("layers are not repeated", _OFF),
    "lora_bias": Without(_VARIANT, _OFF),
    "alora_invocation_tokens": Without(_VARIANT, _OFF),
    "use_qalora": Without(_VARIANT, _OFF),
    "use_bdlora": Without(_VARIANT, _OFF),
    "arrow_config": Without(_VARIANT, _OFF),
    "kasa_config": Without(_VARIANT, _OFF),
    "velora_config": Without(_VARIANT, _OFF),
    "monteclora_config": Without(_VARIANT, _OFF),
    "ensure_weight_tying": To("adapter.ensure_weight_tying"),
}
IA3: dict[str, Row] = {
    "feedforward_modules": To("adapter.feedforward_modules"),
    "init_ia3_weights": Idle("gains always begin at one"),
    "init_weights": Idle("gains always begin at one"),
}
VERA: dict[str, Row] = {
    "r": To("adapter.r"),
    "vera_dropout": To("adapter.vera_dropout"),
    "d_initial": To("adapter.d_initial"),
    "projection_prng_key": To(
        "adapter.projection_prng_key", remark="drawn by another generator here"
    ),
    "save_projection": Idle("the projections are always saved"),
    "init_weights": Idle("the vectors always begin so that nothing changes"),
    "bias": To("adapter.bias"),
}
OFT: dict[str, Row] = {
    "r": To("adapter.r"),
    "oft_block_size": To("adapter.oft_block_size", off=(None, 0)),
    "block_share": To("adapter.block_share"),
    "use_cayley_neumann": To("adapter.use_cayley_neumann"),
    "num_cayley_neumann_terms": To("adapter.num_cayley_neumann_terms"),
    "module_dropout": Without("no rotation is dropped, in PEFT 0.18 neither", _OFF),
    "coft": Without("rotations are not held to small angles; lower the rate", _OFF),
    "eps": Idle("of coft"),
    "init_weights": Idle("rotations always begin at no angle"),
    "bias": To("adapter.bias"),
}
PROMPT: dict[str, Row] = {
    "num_virtual_tokens": To("adapter.num_virtual_tokens"),
    "prompt_tuning_init": To("adapter.prompt_tuning_init"),
    "prompt_tuning_init_text": Without(
        "a prompt begins with rows of the embedding, SAMPLE_VOCAB, or RANDOM", _OFF
    ),
    "tokenizer_name_or_path": Idle(_RUN),
    "tokenizer_kwargs": Idle(_RUN),
    "token_dim": Idle("the model says this"),
    "num_transformer_submodules": Idle("the model says this"),
    "num_attention_heads": Idle("the model says this"),
    "num_layers": Idle("the model says this"),
}
PREFIX: dict[str, Row] = {
    **PROMPT,
    "encoder_hidden_size": Idle("of prefix_projection"),
    "init_weights": Idle("keys and values always begin at random"),
    "prefix_projection": Without("keys and values train directly"),
}

# PEFT's name: (our method, its keys).
METHODS: dict[str, tuple[str, dict[str, Row]]] = {
    "LORA": ("lora", {**COMMON, **LORA}),
    "IA3": ("ia3", {**COMMON, **IA3}),
    "VERA": ("vera", {**COMMON, **VERA}),
    "OFT": ("oft", {**COMMON, **OFT}),
    "PROMPT_TUNING": ("prompt_tuning", {**COMMON, **PROMPT}),
    "PREFIX_TUNING": ("prefix_tuning", {**COMMON, **PREFIX}),
}


def translate(
    draft: Draft, config: Mapping[str, Any], model: str | None = None
) -> str | None:
    """Adds the section `adapter` to a draft.

    Args:
        draft: takes our settings; PEFT's keys are told in it as `peft.NAME`.
        config: the content of adapter_config.json.
        model: the base's folder, where it is not the one that PEFT names.

    Returns:
        The base model that PEFT names; None if it names none.

    Raises:
        InputError: the method is not built, or something else cannot be trained here.
    """
    inner = Draft(config)
    kind = inner.take("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in METHODS:
        inner.refuse("peft_type", f"can be {', '.join(METHODS)} here")
        kind = "LORA"
    method, rows = METHODS[kind]
    base = inner.take("base_model_name_or_path")
    dora = kind == "LORA" and inner.flag("use_dora")
    inner.set("adapter.method", "dora" if dora else method)
    if kind == "LORA":
        _init(inner)
    if method in OWN_TARGETS:
        _targets(inner, method, model or base)
    inner.apply(rows)
    draft.settings |= {
        key: value
        for key, value in inner.settings.items()
        if value != {} and value != []
    }
    draft.remarks |= inner.remarks
    for why, keys in inner.idle.items():
        draft.idle.setdefault(why, []).extend(f"peft.{key}" for key in keys)
    draft.missing |= {f"peft.{key}": why for key, why in inner.missing.items()}
    return base


_USUAL = ["q_proj", "v_proj"]
_KEYS, _QUERIES = ["k_proj", "v_proj", "down_proj"], ["q_proj", "v_proj", "down_proj"]
# What PEFT adapts without target_modules, by the model's type; "" stands for the rest.
OWN_TARGETS: dict[str, dict[str, list[str]]] = {
    "lora": {"": _USUAL, "gpt2": ["c_attn"]},
    "vera": {"": _USUAL, "gpt2": ["c_attn"]},
    "oft": {"": _USUAL, "gpt2": ["c_attn"]},
    "ia3": {
        "": _KEYS,
        **dict.fromkeys(("qwen2", "qwen3", "gemma2", "gemma3_text"), _QUERIES),
        "gpt2": ["c_attn", "mlp.c_proj"],
    },
}


def _targets(draft: Draft, method: str, model: Any) -> None:
    """`target_modules`; null is PEFT's own choice, which is not ours."""
    targets = draft.take("target_modules")
    if targets is not None:
        draft.set("adapter.target_modules", targets)
        if targets == []:
            draft.refuse("target_modules", "name the modules, or all-linear")
        return
    own, kind = OWN_TARGETS[method], str(files.model_config(model).get("model_type"))
    remark = "what PEFT takes where it is null"
    if kind == "None":
        kind, remark = "", f"{remark}; the model is not here to look up its type"
    draft.set("adapter.target_modules", own.get(kind, own[""]), remark)


def _init(draft: Draft) -> None:
    init = draft.take("init_lora_weights", True)
    if init in INITS or str(init).startswith("pissa_niter_"):
        if init is not True:
            draft.set("adapter.init_lora_weights", init)
    else:
        draft.lack("init_lora_weights", f"{init!r} {_INIT}")

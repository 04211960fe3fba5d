"""Decoder-only transformers as pure functions over a params mapping."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.models import (
    cohere,
    cohere2,
    exaone4,
    gemma,
    gemma2,
    gemma3,
    glm4,
    gpt2,
    granite,
    granite4,
    llama,
    ministral,
    ministral3,
    mistral,
    mixtral,
    multimodal,
    nemotron,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    starcoder2,
)
from jaxpeft.models.cache import Cache, init_cache, start_cache
from jaxpeft.models.head import Logits, head
from jaxpeft.models.layer import norm
from jaxpeft.models.noise import Noise, with_noise
from jaxpeft.models.resize import resize_embeddings
from jaxpeft.models.scores import (
    labels_in,
    last_tokens,
    names_in,
    pad_in,
    scores,
    scores_named,
    with_scores,
)
from jaxpeft.models.spec import Experts, ModelConfig, ParamSpec, Rope
from jaxpeft.models.transformer import (
    embed,
    forward,
    hidden_states,
    make_block,
)
from jaxpeft.models.weights import (
    is_spec,
    module_names,
    param_specs,
    random,
    shapes,
    specs_with_head,
)

FAMILIES: dict[str, Callable[[Mapping[str, Any]], ModelConfig]] = {
    "cohere": cohere.config,
    "cohere2": cohere2.config,
    "exaone4": exaone4.config,
    "gemma": gemma.config,
    "gemma2": gemma2.config,
    "gemma3": multimodal.config,
    "gemma3_text": gemma3.config,
    "glm4": glm4.config,
    "gpt2": gpt2.config,
    "granite": granite.config,
    "granitemoehybrid": granite4.config,
    "llama": llama.config,
    "ministral": ministral.config,
    "ministral3": ministral3.config,
    "mistral": mistral.config,
    "mistral3": multimodal.config,
    "mixtral": mixtral.config,
    "nemotron": nemotron.config,
    "olmo2": olmo2.config,
    "olmo3": olmo3.config,
    "olmoe": olmoe.config,
    "phi3": phi3.config,
    "qwen2": qwen2.config,
    "qwen2_5_vl": multimodal.config,
    "qwen2_vl": multimodal.config,
    "qwen3": qwen3.config,
    "qwen3_moe": qwen3_moe.config,
    "qwen3_vl": multimodal.config,
    "smollm3": smollm3.config,
    "starcoder2": starcoder2.config,
}

LARGEST_CONFIG = 1_000_000  # bytes; the largest in use have a few thousand

__all__ = [
    "FAMILIES",
    "Cache",
    "Experts",
    "Logits",
    "ModelConfig",
    "Noise",
    "ParamSpec",
    "Rope",
    "config",
    "embed",
    "forward",
    "head",
    "hidden_states",
    "init_cache",
    "is_spec",
    "labels_in",
    "last_tokens",
    "make_block",
    "module_names",
    "names_in",
    "norm",
    "param_specs",
    "random",
    "resize_embeddings",
    "scores",
    "scores_named",
    "shapes",
    "specs_with_head",
    "start_cache",
    "with_noise",
    "with_scores",
]


def config(source: str | Path | Mapping[str, Any], **settings: Any) -> ModelConfig:
    """The hyperparameters of a model.

    Args:
        source: a directory in Hugging Face format, or the content of its
            `config.json`.
        **settings: fields of ModelConfig that say how to run it (`activation_dtype`,
            `remat`, `offload`, `tile`).

    Raises:
        InputError: the folder or the file is missing, the model_type is unknown, or
            there are fields that the family does not handle.
    """
    hf = source if isinstance(source, Mapping) else _read(Path(source))
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"config.json: model_type: found {kind!r}; supported: "
            + ", ".join(FAMILIES)
        )
    cfg = dataclasses.replace(FAMILIES[kind](hf), **settings)
    count = labels_in(hf)
    if count is None:
        return cfg
    changes = {"num_labels": count, "tie_word_embeddings": False}
    return dataclasses.replace(cfg, **changes, pad_token_id=pad_in(hf))


def _read(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    if not directory.is_dir():
        raise InputError(
            f"model.path: {str(directory)!r} is not a folder; give a local folder in "
            "Hugging Face format (config.json, *.safetensors, tokenizer files)"
        )
    if not path.is_file():
        raise InputError(
            f"model.path: {str(path)!r} is missing; a folder in Hugging Face format "
            "holds config.json, *.safetensors and the tokenizer's files"
        )
    if path.stat().st_size > LARGEST_CONFIG:
        raise InputError(f"{path}: larger than {LARGEST_CONFIG} bytes; no real one is")
    try:
        hf = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); restore the file"
        ) from None
    if not isinstance(hf, dict):
        raise InputError(f"{path}: holds {type(hf).__name__}, not a JSON object")
    return hf

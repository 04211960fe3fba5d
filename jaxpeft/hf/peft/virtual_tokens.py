"""Prompts and prefixes in PEFT's format: one tensor, `prompt_embeddings`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpeft import kernel
from jaxpeft.adapters.virtual import PREFIX, PROMPT, Virtual, added, virtual
from jaxpeft.errors import InputError
from jaxpeft.hf import layout
from jaxpeft.hf.peft import adapter_config, vocabulary
from jaxpeft.hf.peft.folder import writing
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile
from jaxpeft.models.spec import ModelConfig

KEY = "prompt_embeddings"
TYPES = ("PROMPT_TUNING", "PREFIX_TUNING")


def save(
    params: Mapping[str, Any], directory: Path, cfg: ModelConfig, base: str | None
) -> None:
    """Writes the virtual tokens of `params`, and reads them back to compare.

    A prompt is (n, hidden); a prefix (n, layers * 2 * width), of each layer its keys
    and then its values.

    Args:
        params: The params mapping with a prompt or a prefix.
        directory: The folder to write.
        cfg: The model's configuration.
        base: The model's folder or hub id, noted in the config.

    Raises:
        InputError: Where the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    nodes = virtual(params)
    if PROMPT in nodes:
        kind, values = TYPES[0], np.asarray(nodes[PROMPT].weight)
        shape = {"token_dim": cfg.hidden_size, "prompt_tuning_init": "RANDOM"}
        heads = cfg.num_attention_heads
    else:
        both = np.stack([np.asarray(nodes[name].weight) for name in PREFIX], axis=1)
        kind = TYPES[1]
        values = both.transpose(2, 0, 1, 3).reshape(both.shape[2], -1)
        heads = cfg.num_key_value_heads
        shape = {
            "token_dim": heads * cfg.head_dim,
            "encoder_hidden_size": heads * cfg.head_dim,
            "prefix_projection": False,
        }
    content = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": values.shape[0],
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": cfg.num_hidden_layers,
        "inference_mode": True,
        **shape,
    }
    with writing(directory, {KEY: np.ascontiguousarray(values)}, content) as partial:
        again = virtual(load(params, partial, cfg, content))
        for name, node in nodes.items():
            if not np.array_equal(node.weight, again[name].weight):
                raise RuntimeError(f"{directory}: {name} was not written as it is")


def load(
    params: Mapping[str, Any],
    directory: Path,
    cfg: ModelConfig,
    content: Mapping[str, Any],
) -> dict[str, Any]:
    """The params with the virtual tokens of a folder, float32.

    Args:
        params: The params mapping of the base.
        directory: The adapter's folder.
        cfg: The model's configuration.
        content: What the folder's config holds, of a kind in `TYPES`.

    Raises:
        InputError: Where file, config and base do not belong together.
    """
    file = SafetensorsFile(directory / adapter_config.WEIGHTS)
    count = content.get("num_virtual_tokens")
    prompt = content["peft_type"] == TYPES[0]
    width = cfg.num_key_value_heads * cfg.head_dim
    across = cfg.hidden_size if prompt else cfg.num_hidden_layers * 2 * width
    entry = file.tensors.get(KEY)
    if entry is None or entry.dtype not in FLOATS or entry.shape != (count, across):
        raise InputError(
            f"{file.path}: {KEY!r} is {entry and entry.shape}, and this base needs "
            f"({count}, {across}) for {count} virtual tokens: the adapter was made for "
            "another one; set model.path to that"
        )
    ends = vocabulary.read(params, file, adapter_config.AdapterConfig(), cfg)
    before = kernel.nodes(params)
    strange = sorted(set(file.tensors) - ends.used - {KEY})
    if strange or kernel.nodes(ends.params).keys() != before.keys():
        raise InputError(
            f"{file.path}: {(strange or sorted(ends.used))[0]!r} beside virtual tokens "
            "is not the base's own weight; save the model that they were trained on "
            "by itself, and set model.path to that"
        )
    stored = file.view(KEY)
    layout.require_finite(stored, f"{file.path}: {KEY!r}")
    values = np.asarray(stored, np.float32)
    if prompt:
        return added(params, {PROMPT: Virtual(jnp.asarray(values))})
    split = values.reshape(-1, cfg.num_hidden_layers, 2, width).transpose(2, 1, 0, 3)
    nodes = {
        name: Virtual(jnp.asarray(part))
        for name, part in zip(PREFIX, split, strict=True)
    }
    return added(params, nodes)

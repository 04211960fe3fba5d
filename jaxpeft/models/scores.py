"""A head that gives a whole sequence scores: of classes, or one that says how good.

As in transformers' models "ForSequenceClassification": a linear module `score` without
a bias reads the last token that is no padding.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, Int, Int32

from jaxpeft.errors import InputError
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.transformer import hidden_states

SCORE = "score"
LEAF = f"{SCORE}.kernel"
ENDING = "ForSequenceClassification"
# The families that have such a model in transformers, and the beginning of its name.
CLASSES = {
    "exaone4": "Exaone4",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "glm4": "Glm4",
    "gpt2": "GPT2",
    "llama": "Llama",
    "ministral": "Ministral",
    "ministral3": "Ministral3",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "nemotron": "Nemotron",
    "olmo2": "Olmo2",
    "olmo3": "Olmo3",
    "phi3": "Phi3",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "smollm3": "SmolLM3",
    "starcoder2": "Starcoder2",
}
DRAW = 2**31 - 2  # folded into the key of adapters, which fold in their number, from 0


def labels_in(hf: Mapping[str, Any]) -> int | None:
    """How many scores a model gives a sequence, by its config.json; None: it does not.

    Args:
        hf: the content of the file.
    """
    names = hf.get("architectures")
    names = names if isinstance(names, list) else []
    if not any(isinstance(n, str) and n.endswith(ENDING) for n in names):
        return None
    given = hf.get("id2label")
    count = len(given) if isinstance(given, Mapping) else hf.get("num_labels")
    return count if isinstance(count, int) and count > 0 else 2


def pad_in(hf: Mapping[str, Any]) -> int | None:
    """The token of padding that a config.json names; None: it names none.

    Args:
        hf: the content of the file.
    """
    pad = hf.get("pad_token_id")
    return pad if isinstance(pad, int) else None


def names_in(hf: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a config.json; empty where it has none of its own.

    Args:
        hf: the content of the file.
    """
    given = hf.get("id2label")
    if labels_in(hf) is None or not isinstance(given, Mapping):
        return ()
    names = tuple(str(given.get(str(i), "")) for i in range(len(given)))
    unnamed = all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return () if unnamed else names


def scores_named(cfg: ModelConfig) -> str:
    """What a model's class is called in transformers."""
    return CLASSES.get(cfg.model_type, "") + ENDING


def with_scores(
    cfg: ModelConfig, count: int, names: Sequence[str], pad: int | None
) -> ModelConfig:
    """The model with a head of scores in the place of that of tokens.

    So does its config.json say.

    Args:
        cfg: the model's hyperparameters.
        count: how many scores a sequence gets.
        names: of the classes; empty: they have none.
        pad: the token of padding; None: the one that the model's config.json names.

    Raises:
        InputError: transformers has no such model of the family.
    """
    if cfg.model_type not in CLASSES:
        raise InputError(
            f"model.path: of {cfg.model_type!r} transformers has no model "
            f"{ENDING}, whose files this would be; supported: {', '.join(CLASSES)}"
        )
    pad = pad_in(cfg.hf) if pad is None else pad
    called = list(names) or [f"LABEL_{i}" for i in range(count)]
    hf = {
        **cfg.hf,
        "architectures": [CLASSES[cfg.model_type] + ENDING],
        "id2label": {str(i): name for i, name in enumerate(called)},
        "label2id": {name: i for i, name in enumerate(called)},
        "pad_token_id": pad,
    }
    return dataclasses.replace(
        cfg, num_labels=count, pad_token_id=pad, tie_word_embeddings=False, hf=hf
    )


def drawn(cfg: ModelConfig, key: Array, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The weights of a new head, as transformers draws them: normal, without a bias.

    Args:
        cfg: the model's hyperparameters, `num_labels` among them.
        key: that the run's adapter is drawn with.
        dtype: of the weights.

    Returns:
        {"kernel": (hidden, labels)}.
    """
    shape = (cfg.hidden_size, cfg.num_labels or 0)
    values = jax.random.normal(jax.random.fold_in(key, DRAW), shape)
    return {"kernel": (values * cfg.initializer_range).astype(dtype)}


def last_tokens(
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    pad: int | None,
) -> Int32[Array, " batch"]:
    """The place of each row's last token that is no padding.

    As in transformers that is the last one which differs from the token of padding: of
    a text that ends with that very token, the one before.

    Args:
        tokens: one sequence a row, padded on the right.
        positions: 0, 1, ... and 0 in the padding.
        pad: the token of padding; None: positions alone decide.
    """
    places = jnp.arange(tokens.shape[1])
    counts = places <= jnp.max(positions, axis=1, keepdims=True)
    if pad is not None:
        counts &= tokens != pad
    return jnp.max(jnp.where(counts, places, 0), axis=1)


def scores(
    params: Any, batch: Mapping[str, Array], cfg: ModelConfig
) -> Float32[Array, "batch labels"]:
    """The scores of sequences, one a row.

    Args:
        params: of the whole model, adapters in.
        batch: `tokens` and `positions`, (batch, seq) each.
        cfg: the hyperparameters, `num_labels` among them.
    """
    tokens, positions = batch["tokens"], batch["positions"]
    hidden = hidden_states(params, tokens, cfg, positions=positions)
    last = last_tokens(tokens, positions, cfg.pad_token_id)
    pooled = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return pooled.astype(jnp.float32) @ params[SCORE]["kernel"]

"""Command R and Aya (Cohere): attention and MLP side by side, neighbours rotate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

FIELDS = {"rms_norm_eps": "layer_norm_eps"}
# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=500000.0, names=FIELDS, defaults=DEFAULTS)
    if fields.flag("use_qk_norm", False):
        fields.refuse("use_qk_norm", "only false is handled, as all but Command R+ has")
    return decoder(fields, **common(fields))


def common(fields: Fields) -> dict[str, Any]:
    """The keywords of `decoder` that both generations share.

    Args:
        fields: the reader over the model's `config.json`.
    """
    return {
        "attention_bias": fields.flag("attention_bias", False),
        "norms": "parallel",
        "norm_kind": "centered",
        "hidden_act": fields.choice("hidden_act", "silu", ("silu",)),
        "logit_scale": fields.number("logit_scale", 0.0625, positive=True),
        "rope_interleave": True,
    }

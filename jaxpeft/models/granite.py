"""Granite: Llama whose embeddings, attention, residuals and logits are scaled."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder, leave_out
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf)
    return decoder(
        fields,
        **common(fields),
        mlp_bias=fields.flag("mlp_bias", False),
    )


def common(fields: Fields) -> dict[str, Any]:
    """The keywords of `decoder` that all Granites share.

    Args:
        fields: the reader over the model's `config.json`.
    """
    leave_out(fields, ("attention_dropout",))  # 0.1 in Granite 3.0 and 3.1
    multiplier = fields.number("embedding_multiplier", 1.0)
    return {
        "attention_bias": fields.flag("attention_bias", False),
        "hidden_act": fields.choice("hidden_act", "silu", ("silu", "gelu", "relu")),
        # Of whatever the model reads, virtual tokens included.
        "embedding_scale": multiplier,
        "prompt_scale": multiplier,
        "attention_scale": fields.number("attention_multiplier", 1.0, positive=True),
        "residual_scale": fields.number("residual_multiplier", 1.0),
        "logit_scale": 1.0 / fields.number("logits_scaling", 1.0, positive=True),
    }

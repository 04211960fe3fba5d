"""Nemotron and Minitron: LayerNorms with an offset, squared ReLUs without a gate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

FIELDS = {"rms_norm_eps": "norm_eps"}
# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 4096,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=FIELDS, defaults=DEFAULTS)
    heads = fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", max(1, fields.size("hidden_size") // heads))
    if fields.get("kv_channels", head_dim) != head_dim:
        fields.refuse(
            "kv_channels", f"a head is {head_dim} wide, by head_dim; remove it"
        )
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        gated_mlp=False,
        norm_kind="layer",
        norm_offset=1.0,
        hidden_act=fields.choice("hidden_act", "relu2", ("relu2", "relu")),
        rotary_dim=int(head_dim * hf_rope.rotary_share(fields)),
    )

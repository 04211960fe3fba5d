"""Phi-3 and Phi-4: one kernel for q, k and v, one for gate and up."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers, hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
# What older files call the scaling of long contexts.
ROPES = {"su": "longrope", "yarn": "longrope"}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, defaults=DEFAULTS)
    fields.seen.add("original_max_position_embeddings")  # of longrope alone
    heads = fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", max(1, fields.size("hidden_size") // heads))
    layers = fields.size("num_hidden_layers")
    share = hf_rope.rotary_share(fields)
    return decoder(
        fields,
        fused_qkv=True,
        fused_gate_up=True,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        rope=hf_rope.rope(fields, aliases=ROPES),
        rotary_dim=int(head_dim * share),
        windows=hf_layers.windows(fields, [True] * layers),
    )

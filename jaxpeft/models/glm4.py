"""GLM-4: neighbours rotate, half of each head; norms on both sides."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-7,
}
LAYER = "model.layers.{}."
NAMES = (
    (f"{LAYER}post_attention_layernorm", f"{LAYER}post_self_attn_layernorm"),
    (f"{LAYER}pre_feedforward_layernorm", f"{LAYER}post_attention_layernorm"),
    (f"{LAYER}post_feedforward_layernorm", f"{LAYER}post_mlp_layernorm"),
)


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, defaults=DEFAULTS)
    head_dim = fields.size("head_dim")
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", True),
        output_bias=False,
        fused_gate_up=True,
        rope_interleave=True,
        rotary_dim=int(head_dim * hf_rope.rotary_share(fields)),
        norms="both",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        names=NAMES,
    )

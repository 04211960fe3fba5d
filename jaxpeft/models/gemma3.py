"""Gemma 3 (text): norms of q and k, windows that rotate by a base of their own."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import gemma2, hf_layers, hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# Where the file lacks them, as in transformers: the text part of a multimodal model
# leaves out all that is as here, sizes too.
DEFAULTS = {
    "head_dim": 256,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 262208,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=1000000.0, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    pattern = fields.size("sliding_window_pattern", 6)
    local = hf_layers.layer_types(fields, hf_layers.all_but_each(pattern, layers))
    base = fields.number("rope_local_base_freq", 10000.0, positive=True)
    return decoder(
        fields,
        **gemma2.common(fields),
        rope=hf_rope.rope(fields, "full_attention"),
        local_rope=hf_rope.rope(fields, "sliding_attention", theta=base),
        rotations=tuple(int(here) for here in local),
        windows=hf_layers.windows(fields, local),
        qk_norm="head",
        attention_softcap=fields.cap("attn_logit_softcapping"),
        logit_softcap=fields.cap("final_logit_softcapping"),
    )

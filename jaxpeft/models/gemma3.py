"""Gemma 3 (text): norms of q and k, windows that rotate by a base of their own."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import gemma2, hf_layers, hf_rope
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig, Rope


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=1000000.0)
    layers = fields.size("num_hidden_layers")
    pattern = fields.size("sliding_window_pattern", 6)
    local = hf_layers.layer_types(
        fields, [(i + 1) % pattern != 0 for i in range(layers)]
    )
    base = fields.number("rope_local_base_freq", 10000.0, positive=True)
    parameters, own = hf.get("rope_parameters"), Rope(theta=base)
    if isinstance(parameters, Mapping) and "sliding_attention" in parameters:
        own = hf_rope.rope(fields, "sliding_attention")
    return decoder(
        fields,
        **gemma2.common(fields),
        rope=hf_rope.rope(fields, "full_attention"),
        local_rope=own,
        rotations=tuple(int(here) for here in local),
        windows=hf_layers.windows(fields, local),
        qk_norm="head",
        attention_softcap=fields.cap("attn_logit_softcapping", None),
        logit_softcap=fields.cap("final_logit_softcapping", None),
    )

"""Qwen3-MoE: Qwen3 with a mixture of experts in place of every MLP."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers, mixtral
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import Experts, ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=mixtral.FIELDS, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    # Of MLPs beside the experts, which all layers would have to lack.
    fields.seen |= {"intermediate_size", "mlp_only_layers"}
    if hf.get("mlp_only_layers"):
        fields.refuse("mlp_only_layers", "only experts in every layer are handled: []")
    if fields.size("decoder_sparse_step", 1) != 1:
        fields.refuse(
            "decoder_sparse_step", "only experts in every layer are handled: 1"
        )
    count, per_token = mixtral.choice(fields)
    used = fields.flag("use_sliding_window", False)
    if not used:
        fields.seen.add("max_window_layers")
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="head",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, [used] * layers),
        intermediate_size=fields.size("moe_intermediate_size"),
        experts=Experts(count, per_token, fields.flag("norm_topk_prob", False)),
    )

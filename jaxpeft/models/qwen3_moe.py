"""Qwen3-MoE: Qwen3 with a mixture of experts in place of every MLP."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers, mixtral
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import Experts, ModelConfig


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=mixtral.FIELDS)
    layers = fields.size("num_hidden_layers")
    # Of MLPs beside the experts, which all layers would have to lack.
    fields.seen |= {"intermediate_size", "mlp_only_layers"}
    if hf.get("mlp_only_layers"):
        fields.refuse("mlp_only_layers", "only experts in every layer are handled: []")
    if fields.size("decoder_sparse_step", 1) != 1:
        fields.refuse(
            "decoder_sparse_step", "only experts in every layer are handled: 1"
        )
    count, per_token = mixtral.choice(fields, count=128, per_token=8)
    used = fields.flag("use_sliding_window", False)
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="head",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, [used] * layers),
        num_key_value_heads=fields.size("num_key_value_heads", 4),
        intermediate_size=fields.size("moe_intermediate_size", 768),
        experts=Experts(count, per_token, fields.flag("norm_topk_prob", False)),
    )

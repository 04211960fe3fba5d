"""Mixtral: Mistral with a mixture of experts in place of every MLP."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import Experts, ModelConfig

FIELDS = {"num_experts": "num_local_experts"}
# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, theta=1000000.0, names=FIELDS, defaults=DEFAULTS)
    layers = fields.size("num_hidden_layers")
    if fields.number("router_jitter_noise", 0.0):
        fields.refuse("router_jitter_noise", "set it to 0.0: it is not implemented")
    count, per_token = choice(fields)
    return decoder(
        fields,
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        windows=hf_layers.windows(fields, [True] * layers),
        experts=Experts(
            count, per_token, True, block="block_sparse_moe", tensors=("w1", "w3", "w2")
        ),
    )


def choice(fields: Fields) -> tuple[int, int]:
    """How many experts a layer has, and how many of them a token goes to.

    Args:
        fields: the reader over the model's `config.json`, which collects the problems.

    Returns:
        Both numbers.
    """
    count, per_token = fields.size("num_experts"), fields.size("num_experts_per_tok")
    if per_token > count:
        fields.refuse("num_experts_per_tok", f"there are {count} experts")
    fields.seen.add("router_aux_loss_coef")  # of a loss that is added on request alone
    if fields.flag("output_router_logits", False):
        fields.refuse(
            "output_router_logits",
            "set it to false: it adds a loss that balances experts, which is not "
            "implemented",
        )
    return count, per_token

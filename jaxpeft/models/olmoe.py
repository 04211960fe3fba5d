"""OLMoE: OLMo with norms of all of q and of k, and experts in place of MLPs."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import mixtral
from jaxpeft.models.hf_decoder import decoder
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import Experts, ModelConfig

# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 4096,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-5,
}


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    names = mixtral.FIELDS if "num_local_experts" in hf else {}
    fields = Fields(hf, names=names, defaults=DEFAULTS)
    fields.seen.add("clip_qkv")
    if fields.get("clip_qkv", None) is not None:
        fields.refuse("clip_qkv", "set it to null: it is not implemented")
    count, per_token = mixtral.choice(fields)
    return decoder(
        fields,
        attention_bias=fields.flag("attention_bias", False),
        qk_norm="whole",
        hidden_act=fields.choice("hidden_act", "silu", ("silu",)),
        experts=Experts(count, per_token, fields.flag("norm_topk_prob", False)),
    )

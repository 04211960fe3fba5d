"""GPT-2: learned places, LayerNorms with biases, one kernel for q, k and v, no gate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models.hf_decoder import decoder, leave_out
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

# The fields that go by another name.
FIELDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
LAYER, BLOCK = "model.layers.{}.", "transformer.h.{}."
NAMES = (
    ("model.embed_tokens", "transformer.wte"),
    ("model.embed_positions", "transformer.wpe"),
    (f"{LAYER}input_layernorm", f"{BLOCK}ln_1"),
    (f"{LAYER}self_attn.qkv_proj", f"{BLOCK}attn.c_attn"),
    (f"{LAYER}self_attn.o_proj", f"{BLOCK}attn.c_proj"),
    (f"{LAYER}post_attention_layernorm", f"{BLOCK}ln_2"),
    (f"{LAYER}mlp.up_proj", f"{BLOCK}mlp.c_fc"),
    (f"{LAYER}mlp.down_proj", f"{BLOCK}mlp.c_proj"),
    ("model.norm", "transformer.ln_f"),
)
# Of heads for other tasks, or how transformers computes what is the same.
INERT = {
    "reorder_and_upcast_attn",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
}
DROPOUTS = ("attn_pdrop", "embd_pdrop", "resid_pdrop")


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Its dropouts are not applied in training, of which a warning tells: every GPT-2 has
    them at 0.1.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=FIELDS)
    fields.seen |= INERT
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden % heads and not fields.problems:
        fields.refuse("num_attention_heads", f"it must divide n_embd {hidden}")
    positions = fields.size("max_position_embeddings", 1024)
    if fields.size("n_ctx", positions) != positions:
        fields.refuse("n_ctx", f"it must be n_positions {positions}")
    for name in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        if fields.flag(name, False):
            fields.refuse(name, "only false is handled")
    scaled = fields.flag("scale_attn_weights", True)
    leave_out(fields, DROPOUTS, 0.1)
    return decoder(
        fields,
        attention_bias=True,
        mlp_bias=True,
        fused_qkv=True,
        gated_mlp=False,
        conv1d=True,
        position_embedding="learned",
        norm_kind="layer",
        head_dim=max(hidden // heads, 1),
        intermediate_size=fields.size("intermediate_size", 4 * hidden),
        max_position_embeddings=positions,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-5),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        hidden_act=fields.choice(
            "hidden_act",
            "gelu_new",
            ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu"),
        ),
        attention_scale=None if scaled else 1.0,
        names=NAMES,
    )

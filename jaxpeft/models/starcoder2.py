"""StarCoder2: LayerNorms with biases, an MLP without a gate."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.models import hf_layers
from jaxpeft.models.hf_decoder import decoder, leave_out
from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

TANH = "gelu_pytorch_tanh"
FIELDS = {"rms_norm_eps": "norm_epsilon"}
# Where the file lacks them, as in transformers.
DEFAULTS = {
    "max_position_embeddings": 4096,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
LAYER = "model.layers.{}.mlp."
NAMES = ((f"{LAYER}up_proj", f"{LAYER}c_fc"), (f"{LAYER}down_proj", f"{LAYER}c_proj"))


def config(hf: Mapping[str, Any]) -> ModelConfig:
    """The hyperparameters from a Hugging Face `config.json`.

    Its dropouts are not applied in training, of which a warning tells: every StarCoder2
    has them at 0.1.

    Args:
        hf: the content of the file.

    Raises:
        InputError: with every field that is missing, malformed or not handled.
    """
    fields = Fields(hf, names=FIELDS, defaults=DEFAULTS)
    fields.seen.add("activation_function")
    layers, bias = fields.size("num_hidden_layers"), fields.flag("use_bias", True)
    leave_out(fields, ("attention_dropout", "embedding_dropout", "residual_dropout"))
    return decoder(
        fields,
        attention_bias=bias,
        mlp_bias=bias,
        gated_mlp=False,
        norm_kind="layer",
        hidden_act=fields.choice("hidden_act", TANH, (TANH, "gelu", "relu")),
        windows=hf_layers.windows(fields, [True] * layers),
        names=NAMES,
    )

"""What the check of a configured adapter refuses before any weight is read."""

from pathlib import Path

import pytest

from jaxpeft import models
from jaxpeft.assembly.adapter import check_adapter
from jaxpeft.assembly.base import Base
from jaxpeft.config.sections import AdapterSection, ModelSection
from jaxpeft.errors import InputError

MIXTURE = {
    "model_type": "mixtral",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def base():
    section = ModelSection(path="somewhere", dtype="float32")
    return Base(Path("somewhere"), models.config(MIXTURE), None, section)


def section(**keys):
    return AdapterSection.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lora_alpha": 0}, r"adapter\.lora_alpha: found 0, .* give more than 0"),
        (
            {"lora_alpha": 0, "alpha_pattern": {"q_proj": 0}, "method": "dora"}
            | {"target_modules": ["q_proj"]},
            r"adapter\.lora_alpha: found 0",
        ),
        (
            {"method": "ia3", "target_modules": ["gate", "q_proj"]},
            r"adapter\.method: found IA3 for model\.layers\.mlp\.gate; .* use that",
        ),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]},
            r"adapter\.modules_to_save: .*\.self_attn\.q_proj .* adapter\.method full",
        ),
    ],
)
def test_what_could_not_be_saved_is_refused(keys, said, base):
    with pytest.raises(InputError, match=said):
        check_adapter(base, section(**keys))


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_alpha": 0, "alpha_pattern": {"q_proj": 8}},
        {"target_modules": ["gate", "down_proj"], "r": 2},
        # Saved as a whole model, which has a place for all its weights.
        {"method": "full", "target_modules": ["gate", "down_proj"]},
    ],
)
def test_what_can_be_saved_may_train(keys, base):
    check_adapter(base, section(**keys))

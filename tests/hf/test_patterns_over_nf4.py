"""Patterns of ranks that overlap, with rsLoRA over 4 bits, in every form."""

import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, kernel, models

# Of several patterns that match a module the first one counts.
SETTINGS = {
    "target_modules": ["q_proj", "up_proj"],
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": True,
    "init_lora_weights": False,
    "rank_pattern": {
        r".*\.1\..*q_proj": 2,
        r"layers\.2\..*": 9,
        "q_proj": 5,
        r"layers\.1\..*": 7,
    },
    "alpha_pattern": {"q_proj": 5, r".*\.0\..*": 32, r"layers\.2\..*": 3},
}


@pytest.fixture(scope="module")
def stored(write_model, tmp_path_factory):
    """(config, params in nf4, a folder of the weights that these stand for)."""
    folder = tmp_path_factory.mktemp("base")
    write_model(folder / "whole", hidden_size=64, intermediate_size=128)
    cfg = models.config(folder / "whole")
    params = hf.load(folder / "whole", cfg, quantization="nf4")
    hf.save(adapters.merge(params), folder / "stood_for", cfg)
    return cfg, params, folder / "stood_for"


@pytest.mark.slow
def test_every_form_computes_what_peft_does(
    stored, logits_here, logits_there, tmp_path
):
    cfg, params, folder = stored

    def there():
        return transformers.LlamaForCausalLM.from_pretrained(folder)

    torch.manual_seed(1)
    trained = peft.get_peft_model(
        there(), peft.LoraConfig(task_type="CAUSAL_LM", **SETTINGS)
    )
    trained.save_pretrained(tmp_path / "trained")
    # Read back: PEFT sorts the patterns of a file, and so another one may be first.
    trained = peft.PeftModel.from_pretrained(there(), tmp_path / "trained")
    expected = logits_there(trained)
    assert np.abs(expected - logits_there(there())).max() > 0.05
    adapted = hf.load_adapter(params, tmp_path / "trained", cfg)
    ranks = {
        name.split(".")[-2]: node.ranks
        for name, node in kernel.nodes(adapted).items()
        if kernel.is_adapter(node)
    }
    assert ranks == {"q_proj": (5, 2, 9), "up_proj": (4, 7, 9)}
    np.testing.assert_allclose(logits_here(adapted, cfg), expected, atol=1e-4)

    hf.save_adapter(adapted, tmp_path / "peft", cfg)
    hf.save_for_vllm(adapted, tmp_path / "vllm", cfg)
    for kind in ("peft", "vllm"):
        model = peft.PeftModel.from_pretrained(there(), tmp_path / kind)
        np.testing.assert_allclose(logits_there(model), expected, atol=1e-4)
    hf.save(adapters.merge(adapted), tmp_path / "merged", cfg)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits_there(model), expected, atol=1e-4)

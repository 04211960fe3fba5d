"""What a run leaves for others, opened by peft and transformers."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpeft import hf, models, session

TOKENS = np.random.default_rng(0).integers(5, 4096, (2, 17))


@pytest.fixture(scope="module")
def ours(finished):
    """Logits of the run's adapter over its base, computed here."""
    cfg, adapter = session.open_run(finished)
    model = models.config(cfg.model.path)
    params = hf.load_adapter(hf.load(cfg.model.path, model), adapter, model)
    return np.asarray(models.forward(params, TOKENS, model))


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.float().numpy()


def bare(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_peft_loads_the_adapter_of_a_run(finished, tiny, ours):
    base = logits(bare(tiny))
    found = logits(PeftModel.from_pretrained(bare(tiny), finished / "adapter"))
    np.testing.assert_allclose(found, ours, atol=1e-4)
    assert np.abs(found - base).max() > 0.1


@pytest.mark.parametrize("kind", ["peft", "vllm"])
def test_peft_loads_an_exported_adapter(kind, finished, tiny, ours, command, tmp_path):
    out = tmp_path / "adapter"
    done = command("export", "--run", str(finished), "--to", kind, "--out", str(out))
    assert done.code == 0 and f"wrote and verified {out}" in done.out
    found = logits(PeftModel.from_pretrained(bare(tiny), out))
    np.testing.assert_allclose(found, ours, atol=1e-4)


def test_transformers_loads_the_merged_model(finished, ours, command, tmp_path):
    arguments = ["--run", str(finished), "--to", "merged", "--out"]
    out = tmp_path / "merged"
    assert command("export", *arguments, str(out)).code == 0
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(logits(merged), ours, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and len(tokenizer) == 4096
    assert merged.generation_config.eos_token_id == [4, 2]

    out = tmp_path / "half"
    assert command("export", *arguments, str(out), "--dtype", "bfloat16").code == 0
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    np.testing.assert_allclose(logits(merged.float()), ours, atol=0.2)


@pytest.mark.parametrize("kind", ["peft", "vllm", "merged"])
def test_a_folder_that_holds_something_is_left_alone(finished, command, tmp_path, kind):
    (tmp_path / "mine").write_text("precious")
    arguments = ["--run", str(finished), "--to", kind, "--out", str(tmp_path)]
    done = command("export", *arguments)
    assert done.code == 2
    assert f"'{tmp_path}' exists and is not empty; name a new folder" in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]

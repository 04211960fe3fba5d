"""Models in 4 bits for bitsandbytes: written, trained over, merged again."""

import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpeft import hf, kernel, models
from jaxpeft.export import forms
from jaxpeft.quant import NF4

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def wide(tmp_path_factory, make_torch, asset_model):
    """A model that blocks of 64 divide, but for its down_proj."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96}
    make_torch(**sizes, bos_token_id=1, eos_token_id=4).save_pretrained(folder)
    for name in COMPANIONS:
        (folder / name).write_bytes((asset_model / name).read_bytes())
    return folder


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    if getattr(model, "is_loaded_in_4bit", False):
        model = model.dequantize()
    ids = AutoTokenizer.from_pretrained(folder)(forms.SAMPLE)["input_ids"]
    with torch.no_grad():
        return model.eval().float()(torch.tensor([ids])).logits.numpy()


@pytest.fixture
def stored(wide, command, tmp_path):
    """(the model in 4 bits, how the command that wrote it ended)."""
    out = tmp_path / "stored"
    arguments = ["--model", str(wide), "--to", "bnb4", "--out", str(out)]
    done = command("export", *arguments)
    assert done.code == 0, done.err
    return out, done


def test_it_is_written_and_says_what_it_changed(stored, wide):
    out, done = stored
    assert "mlp.down_proj.kernel: its input of 96 is no multiple of 64" in done.err
    found = re.search(r"storing in 4 bits changed .* at most ([\d.]+\d), ", done.out)
    change = np.abs(logits(out) - logits(wide)).max()
    assert float(found[1]) == pytest.approx(change, rel=0.06) and change > 0.1
    nodes = kernel.nodes(hf.load(out, models.config(out)))
    assert len(nodes) == 6 and all(isinstance(k, NF4) for k in nodes.values())


def test_a_run_over_it_is_qlora(stored, trained, command, tmp_path):
    out, _ = stored
    changes = {"model": {"path": str(out), "dtype": "float32"}}
    done = trained("run", **changes)
    assert done.code == 0, done.err
    merged = tmp_path / "merged"
    arguments = ["--run", str(tmp_path / "run"), "--to", "merged"]
    done = command("export", *arguments, "--out", str(merged))
    assert done.code == 0, done.err
    change = re.search(r"merging changed .* at most ([\d.e-]+\d), ", done.out)
    assert float(change[1]) < 1e-4
    assert np.abs(logits(merged) - logits(out)).max() > 0.1  # it learned something
    plan = command("plan", "--config", str(tmp_path / "run.yaml"), "output_dir=x")
    assert plan.code == 0, plan.err


def test_bits_that_it_does_not_have_are_refused(stored, trained):
    out, _ = stored
    done = trained("run", **{"model": {"path": str(out), "quantization": "int8"}})
    assert done.code == 2
    assert "model.quantization: found 'int8', but the checkpoint is" in done.err
    done = trained("run", **{"model.path": str(out), "adapter": {"method": "full"}})
    assert done.code == 2 and "few bits cannot train" in done.err


def test_a_model_without_a_suitable_input_is_refused(tiny, command, tmp_path):
    arguments = ["--model", str(tiny), "--to", "bnb4", "--out", str(tmp_path / "out")]
    done = command("export", *arguments)
    assert done.code == 2 and "--to: found 'bnb4'; no kernel of the layers" in done.err

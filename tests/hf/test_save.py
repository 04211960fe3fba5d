"""Saving: what transformers reads back, and what happens when it cannot be written."""

import errno
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models
from jaxpeft.errors import InputError
from jaxpeft.hf import safetensors_file

ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_parameters": ROPE},
}


@pytest.mark.parametrize("shard", [5e9, 20_000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_weights_round_trip_bit_for_bit(name, dtype, shard, tmp_path, write_model):
    model = write_model(tmp_path / "from", dtype=dtype, **VARIANTS[name])
    cfg = models.config(tmp_path / "from")
    params = hf.load(tmp_path / "from", cfg, dtype)
    hf.save(params, tmp_path / "to", cfg, max_shard_bytes=shard)
    files = sorted(p.name for p in (tmp_path / "to").iterdir())
    assert (len(files) == 2) == (shard > 1e6)
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "to", dtype="auto")
    for key, value in model.state_dict().items():
        found = read.state_dict()[key]
        assert found.dtype == value.dtype
        assert torch.equal(found, value), key
    again = models.config(tmp_path / "to")
    assert again == cfg and dict(again.hf) == dict(cfg.hf)
    jax.tree.map(
        np.testing.assert_array_equal, hf.load(tmp_path / "to", again, dtype), params
    )


def test_shards_follow_the_naming_and_the_limit(params, cfg, tmp_path):
    hf.save(params, tmp_path, cfg, max_shard_bytes=20_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    n = len(files)
    assert files == [f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)]
    sizes = [
        sum(t.stop - t.start for t in file.tensors.values())
        for file in map(safetensors_file.SafetensorsFile, map(tmp_path.joinpath, files))
    ]
    assert max(sizes) <= 20_000 and sum(sizes) == index["metadata"]["total_size"]


def test_the_dtype_asked_for_is_stored_and_noted(params, cfg, tmp_path):
    hf.save(params, tmp_path, cfg, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert read.dtype == torch.bfloat16
    theirs = read.model.norm.weight.detach().float().numpy()
    ours = np.asarray(params["model"]["norm"]["scale"].astype("bfloat16"), np.float32)
    np.testing.assert_array_equal(theirs, ours)
    with pytest.raises(InputError, match="dtype: found 'int8'"):
        hf.save(params, tmp_path, cfg, dtype="int8")


def test_the_older_name_of_the_dtype_is_kept(params, cfg, tmp_path):
    content = {k: v for k, v in cfg.hf.items() if k != "dtype"}
    content |= {"torch_dtype": "float16", "auto_map": {"AutoConfig": "code.Config"}}
    hf.save(params, tmp_path, models.config(content))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["torch_dtype"] == "float32"
    assert "dtype" not in written and "auto_map" not in written


@pytest.mark.slow
def test_merged_adapters_are_what_transformers_computes(
    params, cfg, tmp_path, logits_here, logits_there
):
    rules = {"r": 4, "init_lora_weights": False}
    adapted = adapters.inject(params, rules, jax.random.key(0))
    hf.save(adapters.merge(adapted), tmp_path, cfg)
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert abs(logits_here(adapted, cfg) - logits_here(params, cfg)).max() > 0.01
    np.testing.assert_allclose(logits_here(adapted, cfg), logits_there(read), atol=1e-4)


def test_adapters_left_in_are_refused(params, cfg, tmp_path):
    adapted = adapters.inject(params, {"r": 2}, jax.random.key(0))
    with pytest.raises(InputError, match=r"adapters\.merge"):
        hf.save(adapted, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_params_of_another_config_are_refused(params, cfg, tmp_path):
    other = models.config({**cfg.hf, "intermediate_size": 40})
    with pytest.raises(InputError, match=r"mlp\.up_proj\.kernel: has shape"):
        hf.save(params, tmp_path / "out", other)
    with pytest.raises(InputError, match="extra: has no place"):
        hf.save({**params, "extra": np.ones(2)}, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_weights_of_an_earlier_save_are_removed(params, cfg, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for limit in (20_000, 5e9, 30_000):
        hf.save(params, tmp_path, cfg, max_shard_bytes=limit)
        names = {p.name for p in tmp_path.iterdir()}
        assert ("model.safetensors" in names) == (limit == 5e9)
        assert ("model.safetensors.index.json" in names) == (limit != 5e9)
        hf.load(tmp_path, cfg)
        counts = {n.split("-of-")[1] for n in names if "-of-" in n}
        assert len(counts) <= 1 and "tokenizer.json" in names


def test_a_full_disk_leaves_the_old_files(params, cfg, tmp_path, monkeypatch):
    hf.save(params, tmp_path / "out", cfg)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    write = safetensors_file.write

    def fail(path, *rest):
        write(path, *rest)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors_file, "write", fail)
    for directory in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(InputError, match="No space left on device"):
            hf.save(params, directory, cfg, max_shard_bytes=20_000)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_way_is_reported(params, cfg, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        hf.save(params, tmp_path / "out", cfg)

"""A GGUF file becomes the Hugging Face folder that transformers makes of it."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Kind

from jaxpeft import hf, models

SCRIPT = Path(__file__).parents[1] / "scripts" / "gguf_to_hf.py"
SIZES = {
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "head_count": 4,
    "head_count_kv": 2,
}
TEXT = "Tomorrow it rains in Oslo, 12 degrees; <|eos|> émoji"


def matrices():
    """{name: shape} of the file's matrices, rows first."""
    wide, mlp, kv = 64, 96, 32
    shapes = {"token_embd.weight": (4096, wide)}
    for layer in range(SIZES["block_count"]):
        names = ("attn_q", wide, wide), ("attn_k", kv, wide), ("attn_v", kv, wide)
        names += ("attn_output", wide, wide), ("ffn_gate", mlp, wide)
        names += ("ffn_up", mlp, wide), ("ffn_down", wide, mlp)
        shapes |= {f"blk.{layer}.{name}.weight": (a, b) for name, a, b in names}
    return shapes


@pytest.fixture(scope="module")
def file(tmp_path_factory, asset_model):
    """A Llama of random weights in 4 bits, with the embedded model's tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in SIZES.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(16)
    tokenizer = json.loads((asset_model / "tokenizer.json").read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(words.index("<|bos|>"))
    writer.add_eos_token_id(words.index("<|eos|>"))
    rng = np.random.default_rng(0)
    for name, shape in matrices().items():
        values = gguf.quantize(rng.normal(size=shape).astype(np.float32), Kind.Q4_1)
        writer.add_tensor(name, values, raw_dtype=Kind.Q4_1)
    norms = [f"blk.{n}.{part}_norm" for n in range(2) for part in ("attn", "ffn")]
    for name in [*norms, "output_norm"]:
        writer.add_tensor(f"{name}.weight", rng.normal(size=64).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(file):
    """What the script makes of it."""
    out = file.parent / "out"
    command = [sys.executable, SCRIPT, file, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_the_weights_are_those_that_transformers_reads(file, folder):
    there = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name
    ).state_dict()
    here = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert here.keys() == there.keys()
    for name, weight in there.items():
        np.testing.assert_array_equal(here[name].numpy(), weight.numpy(), name)
    hf.load(folder, models.config(folder))  # and so does jaxpeft


def test_the_tokenizer_is_the_one_that_the_file_holds(folder, asset_model):
    ours = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(asset_model)
    ids = theirs(TEXT, add_special_tokens=False).input_ids
    assert ours(TEXT, add_special_tokens=False).input_ids == ids
    assert ours.eos_token == "<|eos|>"


def test_another_architecture_is_refused(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [sys.executable, SCRIPT, path, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "'mamba'" in done.stderr
    assert not (tmp_path / "out").exists()

"""Loading: logits and values as in transformers, on one device and on several."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from jaxpeft import hf, models, tree
from jaxpeft.errors import InputError

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
VARIANTS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "multi-head": {"num_key_value_heads": 4, "head_dim": 16},
    "llama3": {"rope_parameters": LLAMA3},
    "sharded": {"shard": "20KB"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_match_transformers(
    name, tmp_path, write_model, logits_here, logits_there
):
    model = write_model(tmp_path, **VARIANTS[name])
    assert name != "sharded" or len(list(tmp_path.glob("model-*.safetensors"))) > 3
    cfg = models.config(tmp_path)
    found = logits_here(hf.load(tmp_path, cfg), cfg)
    np.testing.assert_allclose(found, logits_there(model), atol=1e-4)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_cast_as_torch_casts_them(stored, dtype, tmp_path, write_model):
    model = write_model(tmp_path, dtype=stored)
    params = hf.load(tmp_path, models.config(tmp_path), dtype)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {dtype}
    state = model.to(getattr(torch, dtype)).float().state_dict()
    for name, theirs in _as_stored_here(state).items():
        ours = np.asarray(dict(tree.walk(params))[name], np.float32)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def _as_stored_here(state):
    def stack(name):
        return np.stack([state[name.format(i)].numpy() for i in range(3)])

    return {
        "model.embed_tokens.embedding": state["model.embed_tokens.weight"].numpy(),
        "model.norm.scale": state["model.norm.weight"].numpy(),
        "lm_head.kernel": state["lm_head.weight"].numpy().T,
        "model.layers.input_layernorm.scale": stack(
            "model.layers.{}.input_layernorm.weight"
        ),
        "model.layers.self_attn.k_proj.kernel": stack(
            "model.layers.{}.self_attn.k_proj.weight"
        ).transpose(0, 2, 1),
        "model.layers.mlp.down_proj.kernel": stack(
            "model.layers.{}.mlp.down_proj.weight"
        ).transpose(0, 2, 1),
    }


def test_values_beyond_float16_are_refused(tmp_path, write_model):
    model = write_model(tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = 1e5
    model.save_pretrained(tmp_path)
    cfg = models.config(tmp_path)
    with pytest.raises(InputError, match="layers.1.mlp.up_proj.*float16"):
        hf.load(tmp_path, cfg, "float16")
    hf.load(tmp_path, cfg, "bfloat16")


def test_an_unknown_dtype_is_refused(base, cfg):
    with pytest.raises(InputError, match="model.dtype: found 'float23'"):
        hf.load(base, cfg, "float23")


def test_a_copy_of_the_tied_head_and_old_rope_tables_are_ignored(tmp_path, write_model):
    model = write_model(tmp_path, tie_word_embeddings=True)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4).double()
    _save_state(tmp_path, state)
    cfg = models.config(tmp_path)
    assert "lm_head" not in hf.load(tmp_path, cfg)
    state["lm_head.weight"][0, 0] += 1
    _save_state(tmp_path, state)
    with pytest.raises(InputError, match="tie_word_embeddings true"):
        hf.load(tmp_path, cfg)


def _save_state(directory, state):
    from safetensors.torch import save_file

    save_file(state, directory / "model.safetensors", {"format": "pt"})


def test_the_cache_of_the_hub_may_link_its_files(base, cfg, params, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    shared = tmp_path / "blobs" / "de"
    for folder in (snapshot, blobs, shared):
        folder.mkdir(parents=True)
    weights = (base / "model.safetensors").read_bytes()
    (shared / "weights").write_bytes(weights)
    (blobs / "weights").symlink_to("../../blobs/de/weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
    found = hf.load(snapshot, cfg)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def run_alone(environment: dict[str, str], script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ON_A_MESH = """
import sys, jax, numpy as np
from jaxpeft import hf, models
from jaxpeft.devices import sharding

mesh = sharding.make_mesh(data=1, fsdp=2, tensor=2)
whole_model = lambda spec: sharding.replicated(mesh)
cfg = models.config(sys.argv[1])
whole = hf.load(sys.argv[1], cfg)
for parts in (hf.load(sys.argv[1], cfg, mesh=mesh),
              hf.load(sys.argv[1], cfg, mesh=mesh, shardings=whole_model)):
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    print(parts["lm_head"]["kernel"].sharding.spec)
    print(parts["model"]["layers"]["mlp"]["down_proj"]["kernel"]
          .addressable_shards[0].data.shape)
"""


@pytest.mark.slow
def test_each_device_of_a_mesh_gets_its_part(base, of_devices):
    assert run_alone(of_devices(4), ON_A_MESH, str(base)).splitlines() == [
        "P('fsdp', 'tensor')",
        "(3, 24, 16)",
        "P()",
        "(3, 48, 32)",
    ]


MEMORY = """
import sys, jax
from jaxpeft import hf, models, tree

def megabytes(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(key)) / 1024
jax.device_put(1.0).block_until_ready()
cfg = models.config(sys.argv[1])
before = megabytes("VmRSS")
params = hf.load(sys.argv[1], cfg)
print((megabytes("VmHWM") - before) / (tree.nbytes(params) / 2**20))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_the_model_is_never_twice_in_memory(tmp_path, of_devices):
    from jaxpeft.hf import safetensors_file
    from jaxpeft.models.weights import param_specs

    content = {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    shapes = {
        name: (np.dtype(np.float32), spec.hf_shape())
        for _, spec in tree.walk(param_specs(models.config(content)))
        for name in spec.hf_names()
    }
    safetensors_file.write(
        tmp_path / "model.safetensors",
        shapes,
        lambda name: np.ones(shapes[name][1], np.float32),
        {},
    )
    assert float(run_alone(of_devices(1), MEMORY, str(tmp_path))) < 1.25

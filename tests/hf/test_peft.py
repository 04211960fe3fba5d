"""Adapters in PEFT's format, exchanged with peft itself in both directions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, kernel, tree
from jaxpeft.adapters import LoRA
from jaxpeft.hf.peft import adapter_config

Q1 = r"model\.layers\.1\.self_attn\.q_proj"
WRITTEN_BY_PEFT = {
    "names": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ["up_proj"], "use_rslora": True, "r": 6},
    "regex": {"target_modules": rf"{Q1}|.*\.[02]\..*down_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["lm_head", "o_proj"]},
    "full names": {"target_modules": ["model.layers.2.mlp.gate_proj", "k_proj"]},
    "some layers": {
        "target_modules": ["q_proj", "k_proj"],
        "layers_to_transform": [0, 2],
    },
    "one layer": {
        "target_modules": ["q_proj"],
        "layers_to_transform": 1,
        "layers_pattern": "layers",
    },
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    "excluded by regex": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": r".*layers\.0\..*",
    },
    "patterns by module": {
        "target_modules": ["q_proj", "up_proj", "v_proj"],
        "rank_pattern": {"up_proj": 7},
        "alpha_pattern": {"self_attn.v_proj": 3, "up_proj": 2.5},
    },
    "patterns by layer": {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {Q1: 2, r"layers\.2\..*": 9},
        "alpha_pattern": {r".*\.0\..*q_proj": 32, "q_proj": 5},
        "use_rslora": True,
    },
    "default targets": {},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "dora by module": {
        "target_modules": ["q_proj", "up_proj"],
        "use_dora": True,
        "rank_pattern": {"up_proj": 7},
        "layers_to_transform": [0, 2],
    },
    "rank above the matrix": {"target_modules": ["k_proj"], "r": 40},
}


@pytest.fixture
def torch_base(base):
    return transformers.LlamaForCausalLM.from_pretrained(base)


def write_with_peft(model, directory, **settings):
    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    # The default draw of B is too small to show a wrong scale.
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.mul_(5)
    adapted.save_pretrained(directory)
    return adapted


# peft remarks that it saves the head's own weights beside an adapter on the head.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("name", WRITTEN_BY_PEFT)
def test_what_peft_writes_loads_here(
    name, torch_base, params, cfg, tmp_path, logits_here, logits_there
):
    model = write_with_peft(torch_base, tmp_path, **WRITTEN_BY_PEFT[name])
    loaded = hf.load_adapter(params, tmp_path, cfg)
    expected = logits_there(model)
    assert abs(expected - logits_here(params, cfg)).max() > 1e-3
    np.testing.assert_allclose(logits_here(loaded, cfg), expected, atol=1e-4)
    # And back: what is written from it is the same adapter to peft.
    hf.save_adapter(loaded, tmp_path / "again", cfg, base="org/model")
    fresh = transformers.LlamaForCausalLM.from_pretrained(
        json.loads((tmp_path / adapter_config.CONFIG).read_text())[
            "base_model_name_or_path"
        ]
    )
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "again")
    np.testing.assert_allclose(logits_there(again), expected, atol=1e-4)


def test_saved_base_weights_take_the_base_s_place(
    torch_base, params, cfg, tmp_path, logits_here, logits_there
):
    model = write_with_peft(torch_base, tmp_path, target_modules=["q_proj"])
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    hf.load_adapter(params, tmp_path, cfg)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 4] += 1
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    loaded = hf.load_adapter(params, tmp_path, cfg)
    np.testing.assert_allclose(
        logits_here(loaded, cfg), logits_there(model.eval()), atol=1e-5
    )


def test_all_linear_as_peft_leaves_it_in_a_config(torch_base, params, cfg, tmp_path):
    write_with_peft(torch_base, tmp_path, target_modules="all-linear")
    expected = hf.load_adapter(params, tmp_path, cfg)
    change_config(tmp_path, target_modules="all-linear")
    found = hf.load_adapter(params, tmp_path, cfg)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_stored_in_16_bits_load_as_float32(
    dtype, torch_base, params, cfg, tmp_path
):
    model = write_with_peft(torch_base, tmp_path, target_modules=["q_proj"])
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path)
    node = kernel.nodes(hf.load_adapter(params, tmp_path, cfg))[
        "model.layers.self_attn.q_proj.kernel"
    ]
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    theirs = layer.lora_A["default"].weight.detach().float().numpy()
    assert node.a.dtype == jnp.float32
    np.testing.assert_array_equal(node.a[1], theirs.T)


def inject(params, **rules):
    rules = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, **rules}
    return adapters.inject(params, rules, jax.random.key(3))


WRITTEN_HERE = {
    "all-linear": ({}, 7 * 3, None),
    "names": ({"target_modules": ["v_proj", "q_proj"]}, 6, ["q_proj", "v_proj"]),
    "rslora": ({"target_modules": ["up_proj"], "use_rslora": True}, 3, ["up_proj"]),
    "head": ({"target_modules": ["lm_head"]}, 1, ["lm_head"]),
    "regex": (
        {"target_modules": rf"{Q1}|.*\.k_proj"},
        4,
        ["k_proj", "model.layers.1.self_attn.q_proj"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_what_is_written_here_loads_in_peft(
    name, torch_base, params, cfg, tmp_path, logits_here, logits_there
):
    rules, modules, targets = WRITTEN_HERE[name]
    adapted = inject(params, **rules)
    hf.save_adapter(adapted, tmp_path, cfg, base="org/model")
    config = read_config(tmp_path)
    assert targets in (None, config["target_modules"])
    assert (config["r"], config["lora_alpha"]) == (4, 12)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    model = peft.PeftModel.from_pretrained(torch_base, tmp_path)
    expected = logits_here(adapted, cfg)
    assert abs(expected - logits_here(params, cfg)).max() > 1e-2
    np.testing.assert_allclose(logits_there(model), expected, atol=1e-4)
    wrapped = [n for n, _ in model.named_modules() if n.endswith("lora_A.default")]
    assert len(wrapped) == modules


def test_different_modules_are_written_with_patterns(
    torch_base, params, cfg, tmp_path, logits_here, logits_there
):
    adapted = inject(params, target_modules=["q_proj", "k_proj"])
    adapted = tree.replace(
        adapted,
        {
            **kernel.nodes(inject(params, target_modules=["up_proj"], r=2)),
            **kernel.nodes(inject(params, target_modules=["o_proj"], lora_alpha=1.5)),
            **kernel.nodes(inject(params, target_modules=["v_proj"], use_rslora=True)),
        },
    )
    hf.save_adapter(adapted, tmp_path, cfg)
    config = read_config(tmp_path)
    assert config["rank_pattern"] == {"up_proj": 2}
    assert config["alpha_pattern"] == {"o_proj": 1.5, "v_proj": 24}
    assert config["use_rslora"] is False
    model = peft.PeftModel.from_pretrained(torch_base, tmp_path)
    np.testing.assert_allclose(
        logits_there(model), logits_here(adapted, cfg), atol=1e-4
    )


def test_a_round_trip_keeps_every_bit_and_setting(params, cfg, tmp_path):
    adapted = inject(params, target_modules=rf"{Q1}|.*up_proj", lora_dropout=0.1)
    hf.save_adapter(adapted, tmp_path, cfg, base="org/model")
    found = kernel.nodes(hf.load_adapter(params, tmp_path, cfg))
    for name, node in kernel.nodes(adapted).items():
        used = np.asarray(node.scale) != 0
        for field in ("a", "b", "scale"):
            one, other = (np.asarray(getattr(n, field)) for n in (node, found[name]))
            np.testing.assert_array_equal(one[used], other[used])
            assert not other[~used].any()
        assert found[name].dropout == node.dropout == 0.1
        assert found[name].lora_alpha == node.lora_alpha == 12
    assert len(found) == 2


def test_what_is_written_is_complete(params, cfg, tmp_path):
    hf.save_adapter(inject(params, use_rslora=True), tmp_path, cfg, base="org/model")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert read_config(tmp_path) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/model",
        "r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(
            [
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ]
        ),
        "use_rslora": True,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def test_no_modules_of_the_same_name_are_caught_by_a_short_one(params, cfg, tmp_path):
    pattern = r".*\.(0|1)\.self_attn\.q_proj|.*v_proj"
    hf.save_adapter(inject(params, target_modules=pattern), tmp_path, cfg)
    assert read_config(tmp_path)["target_modules"] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "v_proj",
    ]


def test_missing_settings_are_peft_s_defaults(torch_base, params, cfg, tmp_path):
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 8}
    write_with_peft(torch_base, tmp_path, **settings)
    expected = hf.load_adapter(params, tmp_path, cfg)
    (tmp_path / adapter_config.CONFIG).write_text('{"peft_type": "LORA"}')
    found = hf.load_adapter(params, tmp_path, cfg)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_adapters_in_place_take_the_values(torch_base, params, cfg, tmp_path):
    write_with_peft(torch_base, tmp_path, target_modules=["q_proj"], lora_alpha=12)
    fresh = inject(params, target_modules=["q_proj"], lora_dropout=0.2)
    found = hf.load_adapter(fresh, tmp_path, cfg)
    (node,) = kernel.nodes(found).values()
    (expected,) = kernel.nodes(hf.load_adapter(params, tmp_path, cfg)).values()
    np.testing.assert_array_equal(node.a, expected.a)
    np.testing.assert_array_equal(node.b, expected.b)
    assert (node.dropout, node.lora_alpha, node.use_rslora) == (0.2, 12, False)


def test_padded_ranks_stay_padded_in_training(torch_base, params, cfg, tmp_path):
    settings = {"target_modules": ["q_proj"], "rank_pattern": {Q1: 2}}
    write_with_peft(torch_base, tmp_path, **settings)
    (node,) = kernel.nodes(hf.load_adapter(params, tmp_path, cfg)).values()

    def loss(a, b):
        layer = LoRA(base=node.base[1], a=a, b=b, scale=node.scale[1])
        return jnp.sum(jnp.sin(jnp.ones((3, 32)) @ layer))

    da, db = jax.grad(loss, argnums=(0, 1))(node.a[1], node.b[1])
    assert np.any(da[:, :2]) and not np.any(da[:, 2:])
    assert np.any(db[:2]) and not np.any(db[2:])


def read_config(directory):
    return json.loads((directory / adapter_config.CONFIG).read_text())


def change_config(directory, **fields):
    content = {**read_config(directory), **fields}
    (directory / adapter_config.CONFIG).write_text(json.dumps(content))

"""(IA)^3 exchanged with peft, OFT, and bottleneck adapters in a format of ours."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, console, hf, tree
from jaxpeft.errors import InputError

IA3_ROWS = {
    "usual": {},
    "by name": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "all feed-forward": {
        "target_modules": ["gate_proj"],
        "feedforward_modules": ["gate_proj"],
    },
    "by an expression": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "feedforward_modules": r".*\.mlp\.(down|up)_proj",
    },
}


def moved(params):
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    rng = np.random.default_rng(0)

    def away(x):
        return x + jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)

    return tree.combine(jax.tree.map(away, trainable), frozen)


@pytest.mark.slow
@pytest.mark.parametrize("name", IA3_ROWS)
def test_what_peft_writes_loads_here_and_back(
    name, base, params, cfg, tmp_path, logits_here, logits_there
):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.IA3Config(task_type="CAUSAL_LM", **IA3_ROWS[name])
    there = peft.get_peft_model(model, config)
    with torch.no_grad():
        for path, parameter in there.named_parameters():
            if "ia3_l" in path:
                parameter.add_(0.3 * torch.randn_like(parameter))
    there.save_pretrained(tmp_path / "there")
    loaded = hf.load_adapter(params, tmp_path / "there", cfg)
    expected = logits_there(there)
    assert abs(expected - logits_here(params, cfg)).max() > 1e-3
    # What begins here is rescaled in the same places.
    rules = {"method": "ia3", **IA3_ROWS[name]}
    fresh = adapters.inject(params, rules, jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(loaded)
    np.testing.assert_allclose(logits_here(loaded, cfg), expected, atol=1e-4)
    hf.save_adapter(loaded, tmp_path / "here", cfg, base="org/model")
    fresh = transformers.LlamaForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "here")
    np.testing.assert_allclose(logits_there(again), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ia3", "bottleneck", "oft"])
@pytest.mark.parametrize("targets", [None, r".*layers\.[02]\.mlp\.down_proj"])
def test_written_and_read_again(method, targets, params, cfg, tmp_path, logits_here):
    rules = {"method": method} | ({"target_modules": targets} if targets else {})
    rules |= {"reduction_factor": 4.0} if method == "bottleneck" else {}
    adapted = moved(adapters.inject(params, rules, jax.random.key(0)))
    hf.save_adapter(adapted, tmp_path, cfg, base="org/model")
    again = hf.load_adapter(params, tmp_path, cfg)
    np.testing.assert_array_equal(logits_here(again, cfg), logits_here(adapted, cfg))
    over = hf.load_adapter(
        adapters.inject(params, rules, jax.random.key(1)), tmp_path, cfg
    )
    np.testing.assert_array_equal(logits_here(over, cfg), logits_here(adapted, cfg))
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["base_model_name_or_path"] == "org/model"


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        (r".*layers\.0\.mlp.*", r"feedforward_modules: .*means .*layers\.0.*not .*\.1"),
        ("(", "feedforward_modules: '\\(' is not a regular expression"),
    ],
)
def test_an_expression_for_some_layers_or_none_at_all(expression, said, params):
    rules = {"method": "ia3", "feedforward_modules": expression}
    with pytest.raises(InputError, match=said):
        adapters.inject(params, rules, jax.random.key(0))


def test_another_base_is_refused(params, cfg, tmp_path, make_llama):
    adapted = adapters.inject(
        params, {"method": "bottleneck", "reduction_factor": 4.0}, jax.random.key(0)
    )
    hf.save_adapter(adapted, tmp_path, cfg)
    other = make_llama(hidden_size=64)
    with pytest.raises(InputError, match="made for"):
        hf.load_adapter(other.params, tmp_path, other.cfg)


def test_a_missing_tensor_is_named(params, cfg, tmp_path):
    from safetensors.numpy import load_file, save_file

    adapted = adapters.inject(params, {"method": "ia3"}, jax.random.key(0))
    hf.save_adapter(adapted, tmp_path, cfg)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = next(iter(tensors))
    tensors[key.replace("k_proj", "x_proj")] = tensors.pop(key)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match="x_proj"):
        hf.load_adapter(params, tmp_path, cfg)


OFT = {
    "another base": (
        {},
        {"hidden_size": 48, "num_hidden_layers": 3},
        "made for another",
    ),
    "before PEFT 0.14": ({"oft_block_size": None}, {}, "0.13 and before"),
    "constrained": ({"coft": True}, {}, "coft: found true"),
    "a size in words": ({"r": "4"}, {}, "r: found '4'; PEFT writes one like 0"),
    "another number of blocks": ({"block_share": True}, {}, "do not make up"),
}


@pytest.mark.parametrize("name", OFT)
def test_an_oft_that_would_compute_something_else_is_refused(
    name, params, cfg, tmp_path, make_llama
):
    changes, sizes, said = OFT[name]
    adapted = adapters.inject(params, {"method": "oft"}, jax.random.key(0))
    hf.save_adapter(adapted, tmp_path, cfg)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text()) | changes
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content))
    other = make_llama(**sizes) if sizes else None
    base, of = (other.params, other.cfg) if other else (params, cfg)
    with pytest.raises(InputError, match=said):
        hf.load_adapter(base, tmp_path, of)


@pytest.mark.parametrize("version", ["0.17.1", None, "0.19.0.dev0@1f2a"])
def test_an_oft_of_another_series_is_warned_of(version, params, cfg, tmp_path, capsys):
    adapted = adapters.inject(params, {"method": "oft"}, jax.random.key(0))
    hf.save_adapter(adapted, tmp_path, cfg)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text()) | {"peft_version": version}
    file.write_text(json.dumps(content))
    console.forget_remarks()
    capsys.readouterr()
    hf.load_adapter(params, tmp_path, cfg)
    times = capsys.readouterr().err.count("before PEFT 0.18")
    assert times == (1 if version in ("0.17.1", None) else 0)

"""Adapters for vLLM: its rules for the config, and the same model as before."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import transformers

from jaxpeft import adapters, hf, kernel, tree
from jaxpeft.errors import InputError
from jaxpeft.hf.peft.vllm import uniform


def inject(params, **rules):
    rules = {"r": 4, "lora_alpha": 12, "init_lora_weights": False, **rules}
    return adapters.inject(params, rules, jax.random.key(3))


def mixed(params):
    """LoRAs of three ranks and four scales, rsLoRA among them, one layer left out."""
    parts = (
        inject(params, target_modules=r".*\.[02]\.self_attn\.q_proj"),
        inject(params, target_modules=["up_proj"], r=2),
        inject(params, target_modules=["o_proj"], lora_alpha=1.7),
        inject(params, target_modules=["v_proj", "lm_head"], r=6, use_rslora=True),
    )
    nodes = {}
    for part in parts:
        nodes |= kernel.nodes(part)
    name = "model.layers.mlp.up_proj.kernel"
    scale = nodes[name].scale * jnp.asarray([1.0, 0.3, 2.0])
    nodes[name] = nodes[name].replace(scale=scale)
    return tree.replace(params, nodes)


def refusals(config):
    """What `PEFTHelper` of vLLM complains about, and patterns that it would ignore."""
    found = [n for n in ("r", "lora_alpha", "target_modules") if n not in config]
    found += [n for n in ("modules_to_save", "use_dora") if config.get(n)]
    found += [n for n in ("rank_pattern", "alpha_pattern") if config.get(n)]
    return found + ([] if config.get("bias") == "none" else ["bias"])


def read_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


# peft remarks that the head's adapter could be saved with the head's own weights.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.slow
def test_mixed_ranks_and_scales_become_one(
    base, params, cfg, tmp_path, logits_here, logits_there
):
    adapted = mixed(params)
    expected = logits_here(adapted, cfg)
    hf.save_adapter(adapted, tmp_path / "peft", cfg)
    assert refusals(read_config(tmp_path / "peft"))  # else this shows nothing
    hf.save_for_vllm(adapted, tmp_path / "vllm", cfg, base="org/model")
    config = read_config(tmp_path / "vllm")
    assert not refusals(config)
    assert (config["r"], config["use_rslora"]) == (6, False)
    here = hf.load_adapter(params, tmp_path / "vllm", cfg)
    np.testing.assert_allclose(logits_here(here, cfg), expected, atol=1e-4)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    there = peft.PeftModel.from_pretrained(model, tmp_path / "vllm")
    np.testing.assert_allclose(logits_there(there), expected, atol=1e-4)
    assert abs(expected - logits_here(params, cfg)).max() > 0.1


def test_what_vllm_computes_is_the_update(params, cfg, tmp_path):
    """vLLM itself multiplies each B by lora_alpha / r and reads nothing else."""
    adapted = mixed(params)
    hf.save_for_vllm(adapted, tmp_path, cfg)
    config, file = read_config(tmp_path), tmp_path / "adapter_model.safetensors"
    from safetensors.numpy import load_file

    tensors, scale = load_file(file), config["lora_alpha"] / config["r"]
    prefix, seen = "base_model.model.", 0
    for name, node in kernel.nodes(adapted).items():
        update = np.asarray(node.a @ node.b * node.scale[..., None, None])
        layers = [update] if update.ndim == 2 else update
        for layer, expected in enumerate(layers):
            module = name.removesuffix(".kernel")
            module = module.replace("layers.", f"layers.{layer}.")
            key = f"{prefix}{module}.lora_%s.weight"
            if not expected.any():
                assert key % "A" not in tensors
                continue
            a, b = (tensors[key % side] for side in "AB")
            assert a.shape[0] == b.shape[1] == config["r"]
            np.testing.assert_allclose((scale * b @ a).T, expected, atol=1e-6)
            seen += 1
    assert 2 * seen == len(tensors)


@pytest.mark.parametrize("rank, alpha", [(3, 8), (8, 0.3), (6, 12), (7, 1e-3)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_alpha_is_written_as_short_as_it_can_be(
    rank, alpha, use_rslora, params, cfg, tmp_path
):
    """The scale is float32, and alpha as a quotient of it has digits of no meaning."""
    settings = {"r": rank, "lora_alpha": alpha, "use_rslora": use_rslora}
    adapted = inject(params, target_modules=["q_proj"], **settings)
    hf.save_for_vllm(adapted, tmp_path, cfg)
    found = read_config(tmp_path)["lora_alpha"]
    (node,) = kernel.nodes(adapted).values()
    assert np.float32(found / rank) == np.asarray(node.scale)[0]
    if use_rslora:
        # float32 is told by nine digits.
        assert len(repr(found).replace(".", "").lstrip("0")) <= 9
    else:
        assert repr(found) == repr(alpha)


def test_one_rank_and_scale_stay_bit_for_bit(params):
    adapted = inject(params, target_modules=["q_proj", "k_proj"])
    same = kernel.nodes(uniform(adapted))
    for name, node in kernel.nodes(adapted).items():
        np.testing.assert_array_equal(same[name].a, node.a)
        np.testing.assert_array_equal(same[name].b, node.b)
        np.testing.assert_array_equal(same[name].scale, node.scale)


@pytest.mark.parametrize("method", ["dora", "ia3", "bottleneck"])
def test_other_adapters_are_to_be_merged(method, params, cfg, tmp_path):
    adapted = adapters.inject(params, {"method": method}, jax.random.key(0))
    with pytest.raises(InputError, match=r"kernel: vLLM loads no .*--to merged"):
        hf.save_for_vllm(adapted, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_no_adapter_is_nothing_to_write(params, cfg, tmp_path):
    with pytest.raises(InputError, match="hold no adapter"):
        hf.save_for_vllm(params, tmp_path, cfg)


@pytest.mark.parametrize(("rank", "needed"), [(16, None), (17, 32)])
def test_ranks_above_the_default_warn(rank, needed, params, cfg, tmp_path, capsys):
    adapted = inject(params, target_modules=["q_proj"], r=rank)
    hf.save_for_vllm(adapted, tmp_path, cfg)
    warned = capsys.readouterr().err
    assert f"--max-lora-rank {needed}" in warned if needed else not warned


def test_a_rank_that_vllm_has_not_is_refused(params, cfg, tmp_path):
    adapted = inject(params, target_modules=["q_proj"])
    ((name, node),) = kernel.nodes(adapted).items()
    wide = [(0, 0), (0, 0), (0, 600)]
    node = node.replace(
        a=jnp.pad(node.a, wide), b=jnp.pad(node.b, [wide[0], wide[2], wide[0]])
    )
    with pytest.raises(InputError, match="rank 604; vLLM takes at most 512"):
        hf.save_for_vllm(tree.replace(adapted, {name: node}), tmp_path, cfg)

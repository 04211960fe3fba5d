"""Adapters that are damaged, of another base or of another kind: InputError."""

import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.errors import InputError, NumericsError
from jaxpeft.hf.peft import adapter_config

KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def inject(params, **rules):
    rules = {"r": 4, "target_modules": ["q_proj", "v_proj"], **rules}
    return adapters.inject(params, rules, jax.random.key(0))


@pytest.fixture
def folder(params, cfg, tmp_path):
    """An adapter of rank 4 on q_proj and v_proj."""
    hf.save_adapter(inject(params), tmp_path, cfg)
    return tmp_path


def change_config(directory, **fields):
    path = directory / adapter_config.CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rewrite(directory, change):
    path = directory / adapter_config.WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def problems(params, directory, cfg) -> str:
    with pytest.raises(InputError) as caught:
        hf.load_adapter(params, directory, cfg)
    return str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type: found 'LOHA'"),
        ({"peft_type": None}, "peft_type"),
        ({"use_dora": "yes"}, "use_dora: found 'yes'"),
        ({"bias": "some"}, "bias: found 'some'"),
        ({"modules_to_save": "lm_head"}, "modules_to_save: found 'lm_head'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"r": 0}, "r: found 0"),
        ({"r": "8"}, "r: found '8'"),
        ({"r": True}, "r: found True"),
        ({"lora_alpha": "big"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_dropout": 1.0}, "lora_dropout"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"target_modules": "q_proj("}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform"),
        ({"layers_pattern": "("}, "layers_pattern"),
    ],
)
def test_settings_that_are_not_handled(folder, params, cfg, fields, said):
    change_config(folder, **fields)
    found = problems(params, folder, cfg)
    assert said in found and adapter_config.CONFIG in found


def test_a_dora_without_magnitudes(folder, params, cfg):
    change_config(folder, use_dora=True)
    assert "lora_magnitude_vector' is missing" in problems(params, folder, cfg)


def test_all_problems_of_a_config_are_listed(folder, params, cfg):
    change_config(folder, lora_bias=True, bias="some", r=-1)
    assert len(problems(params, folder, cfg).splitlines()) == 3


def test_an_unknown_setting_warns(folder, params, cfg, capsys):
    change_config(folder, shiny_new_thing={"a": 1}, off_by_default=None)
    hf.load_adapter(params, folder, cfg)
    said = capsys.readouterr().err
    assert "shiny_new_thing" in said and "off_by_default" not in said


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_a_config_that_is_no_json_object(folder, params, cfg, text):
    (folder / adapter_config.CONFIG).write_bytes(text.encode("latin-1"))
    assert "restore the file" in problems(params, folder, cfg)


def test_missing_files(folder, params, cfg):
    outer = folder.parent / "outer"
    outer.mkdir()
    folder.rename(outer / "named")
    assert "there is one in 'named'" in problems(params, outer, cfg)
    (outer / "named" / adapter_config.WEIGHTS).unlink()
    assert adapter_config.WEIGHTS in problems(params, outer / "named", cfg)


def test_a_pickle_is_never_opened(folder, params, cfg):
    (folder / adapter_config.WEIGHTS).unlink()
    os.mkfifo(folder / "adapter_model.bin")  # opening it would block for ever
    assert "safe_serialization=True" in problems(params, folder, cfg)


def test_a_rank_that_differs_from_the_config(folder, params, cfg):
    change_config(folder, r=8)
    found = problems(params, folder, cfg)
    assert "has shape (4, 32), expected (8, 32)" in found and "r = 8" in found


def test_targets_that_differ_from_the_config(folder, params, cfg):
    change_config(folder, target_modules=["q_proj", "v_proj", "up_proj"])
    found = problems(params, folder, cfg)
    assert "layers.0.mlp.up_proj.lora_A.weight' is missing" in found
    change_config(folder, target_modules=["v_proj"])
    assert f"{KEY!r} is present, though" in problems(params, folder, cfg)


def test_a_missing_and_a_surplus_key(folder, params, cfg):
    rewrite(folder, lambda tensors: tensors.update(other=tensors.pop(KEY)))
    found = problems(params, folder, cfg)
    assert f"{KEY!r} is missing" in found and "'other'" in found


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (KEY.replace("lora_A.weight", "lora_magnitude_vector"), "DoRA"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "does not target"),
        ("base_model.model.model.norm.weight", "is a weight of the base"),
        ("base_model.model.lm_head.weight", "is of 4 tokens"),
        (KEY.replace("base_model.model.", ""), "another"),
    ],
)
def test_tensors_of_other_methods(folder, params, cfg, key, said):
    rewrite(folder, lambda ts: ts.update({key: np.ones((4, 32), np.float32)}))
    found = problems(params, folder, cfg)
    assert repr(key) in found and said in found


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2},
        {"hidden_size": 16, "head_dim": 8},
        {"num_key_value_heads": 4},
    ],
)
def test_an_adapter_for_another_base(folder, cfg, change):
    other = models.config({**cfg.hf, "head_dim": 8, **change})
    bare = models.random(other, jax.random.key(0))
    assert "made for another" in problems(bare, folder, other)


def test_values_that_are_no_weights(folder, params, cfg):
    rewrite(folder, lambda ts: ts[KEY].__setitem__((0, 0), np.nan))
    assert "NaN or infinity" in problems(params, folder, cfg)
    rewrite(folder, lambda ts: ts.update({KEY: ts[KEY].astype(np.float64)}))
    assert "has dtype F64" in problems(params, folder, cfg)


def test_a_truncated_file(folder, params, cfg):
    path = folder / adapter_config.WEIGHTS
    size = path.stat().st_size
    os.truncate(path, size - 1)
    assert f"expected {size} bytes" in problems(params, folder, cfg)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"r": 2}, "rank 4 in the adapter, 2 in the configuration; set adapter.r to 4"),
        ({"lora_alpha": 32}, "set adapter.lora_alpha to 8 "),
        ({"use_rslora": True}, "adapter.use_rslora to false"),
        ({"target_modules": ["q_proj"]}, "it adapts model.layers.self_attn.v_proj"),
        (
            {"target_modules": ["q_proj", "v_proj", "o_proj"]},
            "it leaves out model.layers.self_attn.o_proj",
        ),
        ({"target_modules": r".*\.1\..*(q|v)_proj"}, "it adapts other layers"),
    ],
)
def test_a_configuration_that_differs_from_the_adapter(
    folder, params, cfg, rules, said
):
    found = problems(inject(params, **rules), folder, cfg)
    assert "adapter.init_from" in found and said in found


def test_nothing_to_save(params, cfg, tmp_path):
    for nothing in (params, inject(params, lora_alpha=0)):
        with pytest.raises(InputError, match="no LoRA"):
            hf.save_adapter(nothing, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_saved(params, cfg, tmp_path):
    adapted = inject(params)
    name, node = next(iter(kernel.nodes(adapted).items()))
    broken = tree.replace(adapted, {name: node.replace(b=node.b + np.nan)})
    with pytest.raises(NumericsError, match="q_proj.lora_B"):
        hf.save_adapter(broken, tmp_path / "out", cfg)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_reported(params, cfg, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        hf.save_adapter(inject(params), tmp_path / "out", cfg)


def test_params_of_another_config_are_refused(params, cfg, tmp_path):
    adapted = {
        **params,
        "other": {"kernel": adapters.lora(np.ones((8, 8)), jax.random.key(0), r=2)},
    }
    with pytest.raises(InputError, match=r"other\.kernel"):
        hf.save_adapter(adapted, tmp_path / "out", cfg)

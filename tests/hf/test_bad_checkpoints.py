"""Folders that are damaged or hostile: InputError that says what to do."""

import json
import os
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from jaxpeft import hf, models
from jaxpeft.errors import InputError

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(base, tmp_path):
    """A copy of the base that a test may damage."""
    return shutil.copytree(base, tmp_path / "model")


@pytest.fixture(scope="module")
def sharded_base(tmp_path_factory, write_model):
    directory = tmp_path_factory.mktemp("sharded")
    write_model(directory, shard="20KB")
    return directory


@pytest.fixture
def sharded(sharded_base, tmp_path):
    """Likewise, in shards."""
    return shutil.copytree(sharded_base, tmp_path / "model")


def problems(directory) -> str:
    with pytest.raises(InputError) as caught:
        hf.load(directory, models.config(directory))
    return str(caught.value)


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def reindex(directory, change):
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def set_config(directory, **fields):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_missing_folder_or_config(tmp_path, cfg):
    with pytest.raises(InputError, match="not a folder"):
        hf.load(tmp_path / "absent", cfg)
    with pytest.raises(InputError, match=r"config\.json.*missing"):
        models.config(tmp_path)


def test_unknown_model_type(folder):
    set_config(folder, model_type="lama")
    supported = ", ".join(models.FAMILIES)
    assert f"found 'lama'; supported: {supported}" in problems(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_are_never_opened(folder, name):
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / name)  # opening it would block for ever
    said = problems(folder)
    assert name in said and "safe_serialization=True" in said


def test_no_weights_at_all(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert "other.safetensors" in problems(folder)


def test_code_named_by_the_config_is_not_imported(folder):
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    set_config(
        folder,
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        _attn_implementation_internal="evil.attention",
    )
    hf.load(folder, models.config(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 25_000_001, 0])
def test_announced_header_of_absurd_length(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    tracemalloc.start()
    assert str(length) in problems(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entries", "said"),
    [(300_000, "more than 200000 tensors"), (500_000, "at most 25000000")],
)
def test_header_with_very_many_entries(folder, entries, said):
    entry = '"{}":{{"dtype":"U8","shape":[],"data_offsets":[0,0]}}'
    text = "{" + ",".join(entry.format(i) for i in range(entries)) + "}"
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode())
    assert said in problems(folder)


def test_truncated_file(folder):
    path = folder / "model.safetensors"
    whole = path.stat().st_size
    os.truncate(path, whole - 100)
    assert f"expected {whole} bytes, found {whole - 100}" in problems(folder)
    os.truncate(path, 50)
    assert "truncated" in problems(folder)
    os.truncate(path, 0)
    assert "0 bytes" in problems(folder)


def test_truncated_shard(sharded):
    path = sorted(sharded.glob("model-*.safetensors"))[1]
    whole = path.stat().st_size
    os.truncate(path, whole - 1)
    said = problems(sharded)
    assert path.name in said and f"expected {whole} bytes, found {whole - 1}" in said


def test_trailing_bytes(folder):
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "but the header describes" in problems(folder)


def test_git_lfs_pointer(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in problems(folder)


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/x.safetensors", "a\0b.safetensors"]
)
def test_index_that_leads_out_of_the_folder(sharded, name):
    reindex(sharded, lambda files: files.update({NAME: name}))
    assert "leads out of this folder" in problems(sharded)


def test_symlink_that_leads_out_of_the_folder(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.rename(sharded.parent / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")
    assert "leads out of this folder" in problems(sharded)


def test_symlink_within_the_folder(sharded, params):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shard.rename(sharded / "inside.safetensors")
    shard.symlink_to("inside.safetensors")
    found = hf.load(sharded, models.config(sharded))
    embedding = params["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(
        found["model"]["embed_tokens"]["embedding"], embedding
    )


def test_missing_shard(sharded):
    path = sorted(sharded.glob("model-*.safetensors"))[2]
    path.unlink()
    said = problems(sharded)
    assert path.name in said and "is missing" in said


def test_tensor_that_its_shard_does_not_hold(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0].name
    reindex(sharded, lambda files: files.update({NAME: first}))
    said = problems(sharded)
    assert NAME in said and first in said


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_malformed_index(sharded, text):
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "restore the file" in problems(sharded)


def test_index_naming_a_pickle(sharded):
    reindex(sharded, lambda files: files.update({NAME: "pytorch_model.bin"}))
    assert ".safetensors file" in problems(sharded)


def test_stray_files_are_ignored(sharded):
    (sharded / "stray.safetensors").write_bytes(b"nonsense")
    (sharded / "training_args.bin").write_bytes(b"nonsense")
    hf.load(sharded, models.config(sharded))


def test_missing_tensor(folder):
    rewrite(folder, lambda tensors: tensors.pop(NAME))
    assert NAME in problems(folder)


def test_missing_head(folder):
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    said = problems(folder)
    assert "lm_head.weight" in said and "tie_word_embeddings" in said


def test_tensors_left_over(folder):
    extra = {"model.layers.3.mlp.up_proj.weight": np.ones((2, 2), np.float32)}
    rewrite(folder, lambda tensors: tensors.update(extra))
    said = problems(folder)
    assert "1 tensors have no place" in said and "model.layers.3.mlp.up_proj" in said


def test_shape_that_contradicts_the_config(folder):
    set_config(folder, intermediate_size=40)
    said = problems(folder)
    assert "has shape (48, 32); config.json implies (40, 32)" in said


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float64, np.bool_])
def test_dtype_that_is_no_weight(folder, dtype):
    rewrite(folder, lambda ts: ts.update({NAME: ts[NAME].astype(dtype)}))
    said = problems(folder)
    assert NAME in said and "has dtype" in said and "BF16" in said


def test_float8_weights(folder, write_model):
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    tensors = load(folder / "model.safetensors")
    tensors[NAME] = tensors[NAME].to(torch.float8_e4m3fn)
    save(tensors, folder / "model.safetensors")
    assert "has dtype F8_E4M3" in problems(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path, write_model, dtype, value):
    model = write_model(tmp_path, dtype=dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 7] = value
    model.save_pretrained(tmp_path)
    said = problems(tmp_path)
    assert NAME in said and "NaN or infinity" in said

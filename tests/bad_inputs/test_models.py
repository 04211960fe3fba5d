"""Damaged models and adapters: exit code 2, help, and nothing written.

Each row is a run that cannot be, and the words that `train` must answer with: the key
or the file, the value found, the remedy.
"""

import json
import os
import sys

import ml_dtypes
import numpy as np
import pytest

from jaxpeft import cli, train
from jaxpeft.assembly import configuration

UP = "model.layers.1.mlp.up_proj.weight"
WEIGHTS = "model.safetensors"

ROWS = []


def bad(number, *words):
    """Adds the function below to the table: its number in the list of promises, and
    what the answer says."""

    def add(spoil):
        ROWS.append(pytest.param(spoil, words, id=f"{number}-{spoil.__name__}"))
        return spoil

    return add


@bad(16, "model.path: the folder '{here}/absent' does not exist", "Hugging Face")
def model_folder_missing(place):
    place.set("model.path", str(place.folder / "absent"))


@bad(16, "the folder '{here}/absent' does not exist", "{here}/gone.json", "no.txt")
def model_and_data_missing(place):
    place.set("model.path", str(place.folder / "absent"))
    place.config["data"]["train"]["path"] = str(place.folder / "gone.json")
    place.config["data"]["eval"] = {"path": str(place.folder / "no.txt")}


@bad(16, "model.path: '{here}/model/config.json' is missing")
def config_json_missing(place):
    (place.model() / "config.json").unlink()


@bad(16, "config.json: not valid JSON", "restore")
def config_json_broken(place):
    (place.model() / "config.json").write_text("{")


@bad(17, "config.json: model_type: found 'mamba'", "llama")
def unknown_model_type(place):
    place.describe(place.model(), model_type="mamba")


@bad("q", "model.quantization: found 'nf4' with adapter.method full", "use none")
def few_bits_that_should_train(place):
    place.set("model.quantization", "nf4")
    place.set("adapter", {"method": "full"})


@bad("q", "model.quantization_skip: 'down_prj' is no module", "'down_proj'")
def nothing_to_leave_out(place):
    place.set("model.quantization", "int8")
    place.set("model.quantization_skip", ["down_prj"])


@bad(18, "'pytorch_model.bin'", "never opened", "save_pretrained")
def only_a_pickle(place):
    folder = place.model()
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@bad(20, "config.json: hidden_size: found 1000000000000", "16777216")
def hidden_size_of_a_trillion(place):
    place.describe(place.model(), hidden_size=10**12)


@bad(23, "truncated: expected", "found 4000000", "download")
def truncated_weights(place):
    os.truncate(place.model() / WEIGHTS, 4_000_000)


@bad(23, "00002-of-", "truncated: expected", "found 1000000", "download")
def truncated_shard(place):
    folder, files = place.shards()
    os.truncate(folder / sorted(set(files.values()))[1], 1_000_000)


@bad(24, "'../../x.safetensors' leads out of this folder", "{here}/model")
def index_that_climbs(place):
    folder, _ = place.shards()
    place.index(folder, lambda files: files.update({UP: "../../x.safetensors"}))


@bad(24, "'/etc/x.safetensors' leads out of this folder", "{here}/model")
def index_with_an_absolute_path(place):
    folder, _ = place.shards()
    place.index(folder, lambda files: files.update({UP: "/etc/x.safetensors"}))


@bad(24, "leads out of this folder", "copy it there")
def shard_that_links_out(place):
    folder, files = place.shards()
    (folder / files[UP]).rename(place.folder / "elsewhere.safetensors")
    (folder / files[UP]).symlink_to(place.folder / "elsewhere.safetensors")


@bad(25, "-of-", "is missing, though", "download the model again")
def index_with_a_missing_shard(place):
    folder, files = place.shards()
    (folder / files[UP]).unlink()


@bad(25, "places 'model.layers.9.x'", "does not hold it", "download")
def index_with_a_missing_tensor(place):
    folder, files = place.shards()
    extra = {"model.layers.9.x": files[UP]}
    place.index(folder, lambda files: files.update(extra))


@bad(26, UP, "(512, 191)", "(512, 192)", "config.json")
def shape_mismatch(place):
    place.rewrite(lambda tensors: tensors.update({UP: tensors[UP][:, :191].copy()}))


@bad(26, UP, "dtype I32", "F32", "unquantized")
def dtype_mismatch(place):
    place.rewrite(lambda tensors: tensors.update({UP: tensors[UP].astype(np.int32)}))


@bad(27, UP, "NaN")
def base_with_nan(place):
    def spoil(tensors):
        tensors[UP][7, 7] = ml_dtypes.bfloat16("nan")

    place.rewrite(spoil)


@bad(28, "adapter_model.safetensors", "(2, 192), expected (4, 192)", "r = 4")
def adapter_of_another_rank(place):
    place.adapter(rank=2)


@bad(28, "v_proj.lora_A.weight' is missing, though the config targets its module")
def adapter_of_other_targets(place):
    place.adapter(target_modules=["q_proj", "v_proj"])


@bad(28, "rank 4 in the adapter, 16 in the configuration", "set adapter.r to 4")
def adapter_of_another_rank_than_asked(place):
    place.adapter()
    place.set("adapter.r", 16)
    place.set("adapter.target_modules", ["q_proj"])


@bad(28, "adapter_config.json: missing", "PEFT")
def adapter_without_a_config(place):
    (place.adapter() / "adapter_config.json").unlink()


@bad(29, "expected (4, 192)", "made for another base", "model.path")
def adapter_for_another_base(place):
    place.adapter(width=256)


@bad(30, "the tokenizer has 4097 tokens", "4096", "vocab_size")
def tokenizer_over_the_embedding(place):
    path = place.model() / "tokenizer.json"
    content = json.loads(path.read_text())
    added = {**content["added_tokens"][-1], "id": 4096, "content": "<|more|>"}
    content["added_tokens"].append(added)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("spoil", "words"), ROWS)
def test_a_bad_input_is_explained_and_leaves_nothing(spoil, words, refused):
    refused(spoil, words)


@pytest.mark.slow
def test_the_run_that_is_spoilt_above_is_a_good_one(place, capfd):
    """Also 19, code named by a config is never imported; 2, 1e-4 is a number; and 25,
    files that the index does not name are ignored."""
    folder, _ = place.shards()
    (folder / "stray.safetensors").write_bytes(b"no tensors")
    (folder / "evil.py").write_text("raise SystemExit('imported')")
    names = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    place.describe(folder, auto_map=names, _attn_implementation_internal="evil.attend")
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    arguments = [*place.write(), "optimizer.learning_rate=1e-4"]
    assert cli.run(train.main, arguments) == 0, capfd.readouterr().err
    assert not [name for name in sys.modules if "evil" in name]
    resolved = configuration.open_config(place.folder / "run" / "config.yaml")
    assert resolved.optimizer.learning_rate == 1e-4

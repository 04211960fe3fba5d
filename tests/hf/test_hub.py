"""Local folders and hub ids; nothing is downloaded."""

import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from jaxpeft import cli, hf, look, plan
from jaxpeft.errors import InputError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The calls that would have gone to the hub, which answers with a folder."""
    (tmp_path / "model.safetensors").touch()
    calls = []

    def answer(repository, **settings):
        calls.append((repository, settings))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    return calls


def test_a_local_folder_is_returned_as_it_is(tmp_path, monkeypatch, asked):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hf.resolve(tmp_path) == tmp_path
    assert hf.resolve("org/name") == Path("org/name")
    assert asked == []


@pytest.mark.parametrize(
    "path", ["./absent", "../absent", "/absent/x", "absent", "a/b/c", "~/x", "a b/c"]
)
def test_what_looks_like_a_path_must_exist(path, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        hf.resolve(path)
    assert asked == []


def test_a_mistyped_path_below_a_folder_is_no_hub_id(tmp_path, monkeypatch, asked):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="'models/lama' does not exist"):
        hf.resolve("models/lama")
    assert asked == []


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="is a file"):
        hf.resolve(tmp_path / "model.safetensors")


def is_wanted(name, settings):
    allowed = any(fnmatch.fnmatch(name, p) for p in settings["allow_patterns"])
    return allowed and not any(
        fnmatch.fnmatch(name, p) for p in settings["ignore_patterns"]
    )


def test_a_plan_downloads_no_weights(tmp_path, asked):
    (tmp_path / "model.safetensors").unlink()
    assert hf.resolve("org/name", weights=False) == tmp_path
    ((_, settings),) = asked
    assert is_wanted("config.json", settings)
    assert is_wanted("tokenizer.json", settings)
    assert not is_wanted("model.safetensors", settings)
    assert not is_wanted("model-00001-of-00002.safetensors", settings)
    # Its copy is all that a run without a network finds.
    with pytest.raises(InputError, match="'org/name' has no safetensors.*start once"):
        hf.resolve("org/name")


def test_only_data_files_of_the_top_folder_are_downloaded(tmp_path, asked):
    assert hf.resolve("org/name-1.5_B") == tmp_path
    ((repository, settings),) = asked
    assert repository == "org/name-1.5_B"

    def wanted(name):
        return is_wanted(name, settings)

    for name in (
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "adapter_model.safetensors",
    ):
        assert wanted(name), name
    for name in (
        "pytorch_model.bin",
        "adapter_model.bin",
        "modeling.py",
        "consolidated.safetensors",
        "original/model.safetensors",
        "README.md",
    ):
        assert not wanted(name), name


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("not in the cache"),
        huggingface_hub.errors.OfflineModeIsEnabled("offline"),
        TimeoutError("timed out"),
        RuntimeError("from an HTTP library"),
    ],
)
def test_a_hub_that_cannot_be_reached(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        InputError, match="neither a local folder nor a reachable hub id"
    ):
        hf.resolve("org/name")


def test_plans_and_looks_ask_for_no_weights(asset_model, monkeypatch, tmp_path, capsys):
    calls = []

    def answer(repository, **settings):
        calls.append(settings)
        return str(asset_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "One two three."}\n' * 8)
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {path: org/name}\nadapter: {method: lora}\n"
        f"data: {{train: {{path: {data}, format: text}}, max_length: 16}}\n"
        "optimizer: {learning_rate: 1e-3}\ntraining: {max_steps: 2, batch_size: 4}\n"
    )
    given = ["--config", str(config), f"output_dir={tmp_path / 'run'}"]
    assert cli.run(plan.main, given) == 0
    assert cli.run(look.main, given) == 0
    assert len(calls) == 2
    assert not any(is_wanted("model.safetensors", one) for one in calls)
    capsys.readouterr()

"""Local folders and hub ids; nothing is downloaded."""

import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from jaxpeft import hf
from jaxpeft.errors import InputError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The calls that would have gone to the hub, which answers with a folder."""
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


def test_only_data_files_of_the_top_folder_are_downloaded(tmp_path, asked):
    assert hf.resolve("org/name-1.5_B") == tmp_path
    ((repository, settings),) = asked
    assert repository == "org/name-1.5_B"

    def wanted(name):
        allowed = any(fnmatch.fnmatch(name, p) for p in settings["allow_patterns"])
        return allowed and not any(
            fnmatch.fnmatch(name, p) for p in settings["ignore_patterns"]
        )

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

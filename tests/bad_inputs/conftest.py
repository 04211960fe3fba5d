"""A valid run in a folder of its own, to be spoilt in one way after another."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxpeft import cli, hf, models, train

RECORD = {"instruction": "Say", "input": "hello", "output": "hello"}
INDEX = "model.safetensors.index.json"


class Place:
    """A valid run in a folder of its own, to be spoilt."""

    def __init__(self, folder: Path, asset: Path):
        self.folder, self.asset = folder, asset
        self.config: dict[str, Any] = {
            "output_dir": str(folder / "run"),
            "model": {"path": str(asset), "dtype": "float32"},
            "adapter": {"r": 4, "target_modules": ["q_proj"]},
            "training": {"max_steps": 1, "batch_size": 2, "samples": 0},
        }
        self.data([RECORD] * 4)
        self.text: str | bytes | None = None  # instead of `config`
        self.arguments: list[str] = []

    def set(self, name: str, value: Any) -> None:
        section, _, key = name.rpartition(".")
        (self.config.setdefault(section, {}) if section else self.config)[key] = value

    def data(self, content: Any, name: str = "data.json", **source: Any) -> Path:
        """Writes a data file and trains on it."""
        path = self.folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        self.config["data"] = {
            "train": {"path": str(path), **source},
            "max_length": 64,
        }
        return path

    def model(self) -> Path:
        """A copy of the model that may be spoilt, for training on."""
        copy = shutil.copytree(self.asset, self.folder / "model")
        self.set("model.path", str(copy))
        return copy

    def shards(self) -> tuple[Path, dict[str, str]]:
        """A copy of the model in shards, and which tensor is in which."""
        copy = self.model()
        cfg = models.config(copy)
        params = hf.load(copy, cfg, dtype="bfloat16")
        hf.save(params, copy, cfg, max_shard_bytes=2_500_000)
        return copy, json.loads((copy / INDEX).read_text())["weight_map"]

    def adapter(self, rank: int = 4, width: int = 192, **settings: Any) -> Path:
        """An adapter in PEFT's format to continue from."""
        path = self.folder / "adapter"
        path.mkdir()
        config = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            **settings,
        }
        (path / "adapter_config.json").write_text(json.dumps(config))
        name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {}
        for layer in range(6):
            tensors[name.format(layer, "A")] = np.ones((rank, width), np.float32)
            tensors[name.format(layer, "B")] = np.zeros((width, rank), np.float32)
        save_file(tensors, path / "adapter_model.safetensors")
        self.config["adapter"] = {"init_from": str(path)}
        return path

    def rewrite(self, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
        """Changes tensors of the model."""
        path = self.model() / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    def index(self, folder: Path, change: Callable[[dict[str, str]], Any]) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    def describe(self, folder: Path, **fields: Any) -> None:
        """Changes fields of the model's config.json."""
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    def template(self, text: str) -> None:
        (self.model() / "chat_template.jinja").write_text(text)

    def write(self) -> list[str]:
        """The arguments of the command."""
        path, content = self.folder / "config.yaml", self.text
        content = yaml.safe_dump(self.config) if content is None else content
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["--config", str(path), *self.arguments]


@pytest.fixture
def place(tmp_path, asset_model) -> Place:
    """A valid run, nothing of which is written but its data."""
    return Place(tmp_path, asset_model)


@pytest.fixture
def contents() -> Callable[[Path], dict[Path, tuple[int, int]]]:
    """contents(folder): all that is below, with its size and when it was changed."""
    return lambda folder: {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(place, contents, capfd) -> Callable[[Callable, Sequence[str]], None]:
    """refused(spoil, words): `train` ends with 2, says the words, and writes nothing.

    spoil: called with the place. In the words `{here}` is the place's folder.
    """

    def check(spoil: Callable[[Place], Any], words: Sequence[str]) -> None:
        spoil(place)
        arguments = place.write()
        before = contents(place.folder)
        assert cli.run(train.main, arguments) == 2
        said = capfd.readouterr()
        for word in words:
            assert word.format(here=place.folder) in said.err
        for line in said.err.splitlines():
            assert line.startswith(("error: ", "warning: "))
        assert "Traceback" not in said.err + said.out
        assert contents(place.folder) == before

    return check

"""The command, run on files of other tools, and what a run would make of the result."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from jaxpeft import cli, convert_config
from jaxpeft.assembly import configuration
from jaxpeft.config import RunConfig


class Converted(NamedTuple):
    """How the command ended, what it said, and the configuration that it wrote."""

    code: int
    out: str
    err: str
    cfg: RunConfig | None
    text: str


@pytest.fixture
def convert(tmp_path, capfd) -> Callable[..., Converted]:
    """convert(keys, *arguments): writes them to a file and translates it.

    kind: "yaml" for LLaMA-Factory's, "json" for training arguments.
    """

    def run(keys: dict[str, Any], *arguments: str, kind: str = "yaml") -> Converted:
        capfd.readouterr()
        theirs, ours = tmp_path / f"theirs.{kind}", tmp_path / "ours.yaml"
        text = yaml.safe_dump(keys) if kind == "yaml" else json.dumps(keys)
        theirs.write_text(text)
        first = [str(theirs)]
        if kind == "json":
            first = ["--from-training-arguments", *first]
        code = cli.run(
            convert_config.main,
            [*first, "--out", str(ours), "--overwrite", *map(str, arguments)],
        )
        cfg = configuration.open_config(ours) if ours.exists() else None
        written = ours.read_text() if ours.exists() else ""
        return Converted(code, *capfd.readouterr(), cfg, written)

    return run


@pytest.fixture(scope="session")
def value() -> Callable[[RunConfig, str], Any]:
    """value(cfg, "section.key"): of a component's own keys too."""

    def find(cfg: RunConfig, dotted: str) -> Any:
        section, _, key = dotted.rpartition(".")
        content = cfg.model_dump()
        return (content[section] if section else content)[key]

    return find


@pytest.fixture
def data_folder(tmp_path) -> Path:
    """A folder of data sets with their `dataset_info.json`."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(5)]
    (folder / "identity.json").write_text(json.dumps(rows[:3]))
    (folder / "alpaca_en_demo.json").write_text(json.dumps(rows))
    lines = [json.dumps({"text": f"document {i}"}) for i in range(4)]
    (folder / "c4_demo.jsonl").write_text("\n".join(lines))
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    calls = [{"conversations": turns, "tools": "[]"}]
    (folder / "glaive.json").write_text(json.dumps(calls))
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (folder / "chat.json").write_text(json.dumps([{"messages": said}]))
    asked = [{"question": "q", "answer": "a"}]
    (folder / "qa.json").write_text(json.dumps(asked))
    answers = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    pairs = [{"conversations": turns[:1], **answers}]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    ranked = [{"question": "q", "good": "yes", "bad": "no"}]
    (folder / "ranked.json").write_text(json.dumps(ranked))
    labelled = [{"messages": said, "wanted": label} for label in (True, False)]
    (folder / "labelled.json").write_text(json.dumps(labelled))
    openai_tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    info = {
        "identity": {"file_name": "identity.json"},
        "alpaca_en_demo": {"file_name": "alpaca_en_demo.json"},
        "c4_demo": {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}},
        "glaive": {
            "file_name": "glaive.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "tools": "tools"},
        },
        "chat": {
            "file_name": "chat.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": openai_tags,
        },
        "qa": {
            "file_name": "qa.json",
            "columns": {"prompt": "question", "response": "answer"},
            "num_samples": 7,
        },
        "pairs": {
            "file_name": "pairs.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
            },
        },
        "ranked": {
            "file_name": "ranked.json",
            "ranking": True,
            "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"},
        },
        "labelled": {
            "file_name": "labelled.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "wanted"},
            "tags": openai_tags,
        },
        "of_the_hub": {
            "hf_hub_url": "org/set",
            "ms_hub_url": "other/set",
            "subset": "en",
            "split": "train_sft",
            "formatting": "sharegpt",
        },
        "elsewhere": {"ms_hub_url": "someone/something"},
        "dpo_en_demo": {"file_name": "dpo.json", "ranking": True},
        "pictures": {"file_name": "p.json", "columns": {"images": "images"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder

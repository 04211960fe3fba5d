"""A tiny model with the shipped tokenizer, and the commands run on it in-process."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from jaxpeft import (
    chat,
    cli,
    combine,
    compare,
    convert_config,
    diagnose,
    evaluate,
    export,
    generate,
    lr_find,
    plan,
    report,
    sweep,
    train,
)

COMMANDS = {
    "train": train.main,
    "lr_find": lr_find.main,
    "diagnose": diagnose.main,
    "evaluate": evaluate.main,
    "generate": generate.main,
    "chat": chat.main,
    "export": export.main,
    "combine": combine.main,
    "plan": plan.main,
    "sweep": sweep.main,
    "convert_config": convert_config.main,
    "report": report.main,
    "compare": compare.main,
}
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def digest(self) -> str:
        """The line with the hash of the final state."""
        return next(s for s in self.out.splitlines() if s.startswith("state after"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, make_torch, asset_model) -> Path:
    """The folder of a random Llama with 2 layers; tests must not write into it."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_torch(
        vocab_size=4096,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=4,
    ).save_pretrained(folder)
    for name in COMPANIONS:
        (folder / name).write_bytes((asset_model / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def records(asset_model) -> list[dict[str, str]]:
    """The first examples of the shipped data set, in alpaca's format."""
    path = asset_model.parent / "weather" / "train.json"
    return json.loads(path.read_text(encoding="utf-8"))[:60]


@pytest.fixture(scope="session")
def files(tmp_path_factory, records) -> dict[str, str]:
    """Data files: `train` (48 records) and `eval` (10 others)."""
    folder = tmp_path_factory.mktemp("data")
    parts = {"train": records[:48], "eval": records[48:58]}
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return {name: str(folder / f"{name}.json") for name in parts}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory, asset_model):
    """{objective's name: the sections `data.train` and `data.eval`}, of few records."""
    folder = tmp_path_factory.mktemp("preferences")
    path = asset_model.parent / "weather_pairs" / "train.json"
    records = json.loads(path.read_text(encoding="utf-8"))[:22]

    def labelled(number, record):
        wanted = number % 3 != 0
        answer = record["chosen" if wanted else "rejected"]
        kept = {key: record[key] for key in ("instruction", "input")}
        return {**kept, "output": answer, "label": wanted}

    kinds = {"dpo": records, "kto": [labelled(*one) for one in enumerate(records)]}
    found = {}
    for name, own in kinds.items():
        found[name] = {}
        for side, part in (("train", own[:16]), ("eval", own[16:])):
            (folder / f"{name}-{side}.json").write_text(json.dumps(part))
            source = {"path": str(folder / f"{name}-{side}.json"), "format": "alpaca"}
            found[name][f"data.{side}"] = source
    return found


@pytest.fixture(scope="session")
def settings(tiny, files) -> Callable[..., dict[str, Any]]:
    """settings(**{"section.key": value}): a configuration without its output_dir."""

    def make(**changes: Any) -> dict[str, Any]:
        config: dict[str, Any] = {
            "model": {"path": str(tiny), "dtype": "float32"},
            "adapter": {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj", "up_proj"],
            },
            "data": {
                "train": {"path": files["train"]},
                "max_length": 128,
                "length_buckets": 1,
            },
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"name": "constant"},  # the same program at any length
            "training": {
                "max_steps": 8,
                "batch_size": 4,
                "logging_steps": 1,
                "save_steps": 100,
                "samples": 0,
            },
        }
        for name, value in changes.items():
            section, _, key = name.rpartition(".")
            (config.setdefault(section, {}) if section else config)[key] = value
        return config

    return make


@pytest.fixture
def command(capfd) -> Callable[..., Done]:
    """command("train", arguments): runs it here, through the commands' outer shell."""

    def run(name: str, *arguments: str) -> Done:
        capfd.readouterr()
        code = cli.run(COMMANDS[name], arguments)
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture
def trained(command, settings, tmp_path) -> Callable[..., Done]:
    """trained(name, *arguments, **settings): trains into tmp_path / name."""

    def run(name: str, *arguments: str, **changes: Any) -> Done:
        config = write_config(tmp_path / f"{name}.yaml", settings(**changes))
        output = f"output_dir={tmp_path / name}"
        return command("train", "--config", str(config), output, *arguments)

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, settings, files) -> Path:
    """The output_dir of a run that has ended; tests must not write into it."""
    folder = tmp_path_factory.mktemp("runs")
    config = settings(
        **{
            "output_dir": str(folder / "finished"),
            "data.eval": {"path": files["eval"]},
            "data.shuffle": False,
            "adapter.lora_dropout": 0.1,
            "adapter.target_modules": "all-linear",
            "schedule": {"name": "cosine", "warmup_steps": 2},
            "training.max_steps": 25,
            "training.eval_steps": 10,
            "training.save_steps": 10,
            "training.samples": 1,
        }
    )
    path = write_config(folder / "finished.yaml", config)
    assert cli.run(train.main, ["--config", str(path)]) == 0
    return folder / "finished"


# A process of eight devices, which trains as each file says that it is sent.
EIGHT = """
import sys
from jaxpeft import cli, console, train
for line in sys.stdin:
    code = cli.run(train.main, ["--config", line.rstrip("\\n")])
    console.flush()
    sys.stdout.write(f"ENDED {code}\\n")
    sys.stdout.flush()
"""


@pytest.fixture(scope="session")
def on_eight(
    of_devices: Callable[[int], dict[str, str]],
) -> Iterator[Callable[[Path], None]]:
    """on_eight(config): trains on eight devices; all runs share a process for that."""
    child: subprocess.Popen[str] | None = None

    def train_there(config: Path) -> None:
        nonlocal child
        if child is None or child.poll() is not None:  # one that fell fails one test
            child = subprocess.Popen(
                [sys.executable, "-c", EIGHT],
                env=of_devices(8),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{config}\n")
        child.stdin.flush()
        wrote = []
        for line in child.stdout:
            if line == "ENDED 0\n":
                return
            wrote.append(line)
            if line.startswith("ENDED"):
                break
        raise AssertionError("".join(wrote))

    yield train_there
    if child is not None:
        child.communicate(timeout=60)


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], tuple[list[dict], list[dict]]]:
    """metrics(run): its training lines and its evaluation lines."""

    def read(run: Path) -> tuple[list[dict], list[dict]]:
        text = (run / "metrics.jsonl").read_text()
        lines = [json.loads(line, parse_constant=_refuse) for line in text.splitlines()]
        return (
            [line for line in lines if "loss" in line],
            [line for line in lines if "eval_loss" in line],
        )

    return read


@pytest.fixture(scope="session")
def conversation() -> Callable[[dict[str, str]], list[dict[str, str]]]:
    """conversation(record): an alpaca record as messages, as its authors define it."""

    def turns(record: dict[str, str]) -> list[dict[str, str]]:
        prompt = f"{record['instruction']}\n{record['input']}"
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": record["output"]},
        ]

    return turns


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs by their commands are what `--fast` leaves out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _refuse(constant: str) -> Sequence[Any]:
    raise AssertionError(f"{constant} is no JSON")

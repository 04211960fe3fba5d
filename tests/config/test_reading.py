"""Configurations read from files, with overrides, against tables of components."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from jaxpeft import config
from jaxpeft.config import Table, strict_yaml
from jaxpeft.errors import InputError

INTERFACE = """
output_dir: runs/e2e
seed: 42
model: {path: models/tiny, dtype: bfloat16, quantization: none, remat: none}
adapter:
  method: lora
  r: 16
  lora_alpha: 32
  lora_dropout: 0.0
  target_modules: all-linear
  init_from: null
data:
  train: {path: train.json, format: alpaca}
  eval: {path: eval.json, format: alpaca}
  max_length: 256
  packing: false
  shuffle: true
  train_on: assistant
optimizer:
  name: adamw
  learning_rate: 2e-4
  b1: 0.9
  eps: 1e-8
  weight_decay: 0
  max_grad_norm: 1.0
schedule: {name: cosine, warmup_ratio: 0.1}
training:
  max_steps: 200
  batch_size: 16
  gradient_accumulation_steps: 1
  logging_steps: 10
  eval_steps: 50
  save_steps: 50
  save_total_limit: 3
  early_stopping_patience: null
mesh: {data: -1, fsdp: 1, tensor: 1}
"""


def test_the_command_line_outranks_the_other_way_of_saying_it(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(INTERFACE)
    asked = ["training.num_epochs=2", "schedule.warmup_steps=5"]
    found = config.load(path, asked)
    assert (found.training.max_steps, found.training.num_epochs) == (None, 2)
    assert (found.schedule.warmup_ratio, found.schedule.warmup_steps) == (None, 5)
    assert capsys.readouterr().err == ""
    same = config.load(path, ["training.num_epochs=null", "schedule.warmup_ratio=0.2"])
    assert (same.training.max_steps, same.schedule.warmup_ratio) == (200, 0.2)
    # Another evaluation than the file's is worth a word, unless it is taken out, too.
    split = config.load(path, ["data.eval_split=0.1"])
    assert (split.data.eval, split.data.eval_split) == (None, 0.1)
    said = capsys.readouterr().err
    assert "data.eval_split on the command line takes the place of data.eval" in said
    config.load(path, ["data.eval_split=0.2", "data.eval=null"])
    assert capsys.readouterr().err == ""


def lora(
    base,
    *,
    r: int,
    lora_alpha: float = 16.0,
    init: Literal["kaiming", "gaussian"] = "kaiming",
    lora_dropout: float = 0.0,
):
    return ("lora", base, r, lora_alpha, init, lora_dropout)


def adamw(
    learning_rate,
    b1: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    betas: tuple[float, float] | None = None,
    nesterov: bool = False,
):
    return ("adamw", learning_rate, b1, eps, weight_decay, betas, nesterov)


def cosine(learning_rate, total_steps, warmup_steps=0, final: "float | None" = 0.0):
    return ("cosine", learning_rate, total_steps, warmup_steps, final)


@dataclass(frozen=True)
class Row:
    """A component without traits."""

    make: Callable[..., Any]


TABLES = {
    "adapter": Table({"lora": Row(lora)}, given={"base"}),
    "optimizer": Table(
        {"adamw": Row(adamw)}, {"adamw_torch": "adamw"}, {"learning_rate"}
    ),
    "schedule": Table(
        {"cosine": Row(cosine)}, given={"learning_rate", "total_steps", "warmup_steps"}
    ),
}


def problems(*overrides: str, adapter: str = "{r: 8}") -> list[str]:
    """What is wrong with a small configuration and these overrides."""
    mapping: dict = {
        "output_dir": "runs/x",
        "model": {"path": "models/x"},
        "adapter": strict_yaml.parse_scalar(adapter),
        "data": {"train": {"path": "train.json"}},
    }
    for override in overrides:
        path, _, text = override.partition("=")
        section, _, key = path.rpartition(".")
        node = mapping.setdefault(section, {}) if section else mapping
        node[key] = strict_yaml.parse_scalar(text)
    try:
        config.parse(mapping, tables=TABLES)
    except InputError as error:
        return list(error.problems)
    return []


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_the_public_example_is_read_as_it_stands(tmp_path):
    found = config.load(write(tmp_path, INTERFACE), tables=TABLES)
    assert found.optimizer.learning_rate == 2e-4
    assert found.optimizer.options == {"b1": 0.9, "eps": 1e-8, "weight_decay": 0}
    assert found.adapter.choice == "lora"
    assert found.adapter.target_modules == "all-linear"
    assert [source.path for source in found.data.train] == ["train.json"]
    assert found.training.num_epochs is None
    assert found.training.eval_steps == 50
    assert found.mesh.data == -1


def test_all_problems_are_told_at_once():
    found = problems(
        "seed=true",
        "modle={}",
        "training.max_steps=-1",
        "optimizer.learning_rate=.nan",
        "optimizer.beta=1",
        "adapter.r=1.5",
        "schedule.name=cosin",
        "mesh.data=0",
    )
    keys = [message.partition(":")[0] for message in found]
    assert sorted(keys) == [
        "adapter.r",
        "mesh.data",
        "modle",
        "optimizer.beta",
        "optimizer.learning_rate",
        "schedule.name",
        "seed",
        "training.max_steps",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "adapter.method=lorra",
            "adapter.method: found 'lorra'; is not known; did you",
        ),
        ("adapter.r=true", "adapter.r: found true; must be a whole number"),
        ("adapter.lora_alpha=.nan", "adapter.lora_alpha: found nan; must be finite"),
        ("adapter.target_modules=3", "must be text or a list (each text)"),
        ("adapter.target_modules=[3]", "must be text or a list (each text)"),
        ("adapter.init=gausian", "did you mean 'gaussian'?"),
        ("adapter.lora_rank=8", "is not a key of 'lora'; did you mean 'adapter.r'?"),
        ("adapter.lora_alfa=8", "did you mean 'lora_alpha'?"),
        ("adapter.base=8", "is set by the run itself"),
        ("optimizer.total_steps=8", "did you mean 'training.max_steps'?"),
        ("optimizer.nesterov=1", "found 1; must be true or false"),
        ("optimizer.betas=[0.9]", "must be a list (each a number) or null"),
        ("training.weight_decay=0.1", "did you mean 'optimizer.weight_decay'?"),
        ("schedule.final=low", "found 'low'; must be a number"),
    ],
)
def test_a_component_checks_its_keys_by_its_signature(override, problem):
    (message,) = problems(override)
    assert problem in message


def test_a_key_that_a_component_needs_is_asked_for():
    (message,) = problems(adapter="{}")
    assert message == "adapter.r: is missing; 'lora' needs it, a whole number"


def test_a_component_is_built_from_its_section_and_what_the_code_gives():
    mapping = strict_yaml.load(INTERFACE, "run.yaml")
    mapping["adapter"] = {"r": 4, "target_modules": ["q_proj"]}
    mapping["optimizer"] = {
        "name": "adamw_torch",
        "learning_rate": 1,
        "betas": [0, 0.5],
    }
    found = config.parse(mapping, tables=TABLES)
    assert found.optimizer.name == "adamw"
    built = config.build(TABLES["optimizer"], found.optimizer, learning_rate=3)
    assert built == ("adamw", 3, 0.9, 1e-8, 0.0, [0, 0.5], False)
    built = config.build(TABLES["adapter"], found.adapter, base="W")
    assert built == ("lora", "W", 4, 16.0, "kaiming", 0.0)


def test_a_section_is_checked_on_its_own():
    table = TABLES["optimizer"]
    found = config.parse_section("optimizer", {"name": "adamw_torch", "b1": 0.8}, table)
    assert (found.choice, found.options) == ("adamw", {"b1": 0.8})
    with pytest.raises(InputError) as caught:
        config.parse_section("optimizer", {"learning_rate": -1, "b3": 0.8}, table)
    first, second = caught.value.problems
    assert first == "optimizer.learning_rate: found -1; must be at least 0"
    assert second.startswith("optimizer.b3: found 0.8; is not a key of 'adamw'")


def test_keys_that_begin_with_x_are_the_user_s_own(tmp_path):
    text = INTERFACE.replace("training:\n", "training:\n  <<: *steps\n")
    text = text.replace("  logging_steps: 10\n", "")
    held = "x-steps: &steps {logging_steps: 7, save_steps: 9}\nx-: [1, 2]\n"
    file = write(tmp_path, held + text)
    found = config.load(file, tables=TABLES)
    # What the section says itself counts before what is merged into it.
    assert (found.training.logging_steps, found.training.save_steps) == (7, 50)
    assert "x-" not in config.to_yaml(found)
    for path in ("x-steps.logging_steps", "x-other"):
        with pytest.raises(InputError, match=f"{path}: keys that begin with x-"):
            config.load(file, [f"{path}=3"])
    within = INTERFACE.replace("training:\n", "training:\n  x-mine: 3\n")
    with pytest.raises(InputError, match=r"training\.x-mine: found 3; there is no"):
        config.load(write(tmp_path, within))


def test_values_are_taken_as_they_are(tmp_path):
    file = write(tmp_path, INTERFACE)
    given = {"output_dir": "runs/a #2", "adapter.init_from": "true", "seed": 5}
    found = config.load(file, ["seed=4", "output_dir=b"], values=given)
    assert found.output_dir == "runs/a #2"
    assert (found.adapter.init_from, found.seed) == ("true", 5)
    # They outrank the other way of saying it, too.
    found = config.load(file, values={"training.num_epochs": 2.0})
    assert (found.training.max_steps, found.training.num_epochs) == (None, 2.0)
    with pytest.raises(InputError, match=r"did you mean 'optimizer.learning_rate'"):
        config.load(file, values={"lr": 1})


def test_overrides_replace_keys_of_the_file(tmp_path):
    file = write(tmp_path, INTERFACE)
    overrides = ["optimizer.learning_rate=1e-3", "adapter.target_modules=[q_proj]"]
    overrides += ["seed=7", "data.eval.path=other.json", "training.batch_size=32"]
    found = config.load(file, [*overrides, "seed=8"])
    assert found.optimizer.learning_rate == 1e-3
    assert found.adapter.target_modules == ["q_proj"]
    assert found.seed == 8
    assert found.data.eval is not None
    assert found.data.eval[0].path == "other.json"
    assert found.training.batch_size == 32


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed.x=1", "seed.x: seed is 42, which has no key 'x'; override all of it"),
        ("model.path.x=1", "model.path is 'models/tiny', which has no key 'x'"),
        ("output_dir.a.b=1", "output_dir is 'runs/e2e', which has no key 'a'"),
        (
            "trainng.max_steps=1",
            "no section or key 'trainng'; did you mean 'training'?",
        ),
        ("lr=1", "did you mean 'optimizer.learning_rate'?"),
        ("seed", "seed: is not an override; write section.key=value"),
        ("training..x=1", "is not an override; write section.key=value"),
        ("training.max_steps=[1", "training.max_steps: found '[1'; "),
    ],
)
def test_an_override_that_cannot_be_applied_is_explained(tmp_path, override, problem):
    with pytest.raises(InputError) as caught:
        config.load(write(tmp_path, INTERFACE), [override])
    (message,) = caught.value.problems
    assert problem in message


def test_problems_of_overrides_and_of_the_file_are_told_together(tmp_path):
    file = write(tmp_path, INTERFACE.replace("seed: 42", "seed: on"))
    with pytest.raises(InputError) as caught:
        config.load(file, ["nope=1", "model.path.x=1"])
    assert len(caught.value.problems) == 3


def test_an_override_leaves_an_aliased_section_alone(tmp_path):
    text = """
        output_dir: o
        model: {path: m}
        data: {train: &source {path: a}, eval: *source}
    """
    found = config.load(write(tmp_path, text), ["data.eval.path=b"])
    assert [source.path for source in found.data.train] == ["a"]
    assert found.data.eval is not None
    assert [source.path for source in found.data.eval] == ["b"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as caught:
            config.load(path)
        assert str(path) in str(caught.value)


def test_a_binary_or_huge_file_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    for content, words in ((b"\x80\x02}q", "not UTF-8"), (b"#" * 2**21, "larger than")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            config.load(path)

"""Commands keep what they compile, and load it at their next start."""

import re

import pytest

from jaxpeft.devices import programs

from .conftest import COMMANDS, write_config


def verbs(text: str, name: str) -> set[str]:
    return set(re.findall(rf"^(\w+) the {name} for batches of ", text, re.M))


def test_a_second_start_loads_its_step_and_ends_in_the_same_bits(
    trained, own_programs, files, settings, command, tmp_path
):
    data = {"data.eval": {"path": files["eval"]}, "training.eval_steps": 4}
    changes = {**data, "optimizer.weight_decay": 0.0123}
    first = trained("first", **changes)
    second = trained("second", **changes)
    assert first.code == second.code == 0
    assert verbs(first.out, "step") == {"compiled"}
    assert verbs(second.out, "step") == verbs(second.out, "evaluation") == {"loaded"}
    assert first.digest == second.digest
    # Rates are no part of the program: a range test and another course have the same.
    config = write_config(tmp_path / "range.yaml", settings(**changes))
    output = f"output_dir={tmp_path / 'range'}"
    steps = ("--steps", "10", "--start", "1e-3")
    test = command("lr_find", "--config", str(config), output, *steps)
    assert test.code == 0
    assert verbs(test.out, "step of the range test") == {"loaded"}
    course = {"schedule": {"name": "linear"}, "optimizer.learning_rate": 3e-4}
    third = trained("third", **changes, **course, **{"training.max_steps": 3})
    assert third.code == 0
    assert verbs(third.out, "step") == {"loaded"}


class Kept(Exception):
    """`programs.keep` was called."""


@pytest.mark.parametrize(
    "name", ["train", "lr_find", "sweep", "evaluate", "generate", "chat"]
)
def test_commands_that_compute_keep_their_programs(
    name, settings, tiny, tmp_path, monkeypatch
):
    def keep():
        raise Kept

    monkeypatch.setattr(programs, "keep", keep)
    config = write_config(tmp_path / "run.yaml", settings(output_dir=str(tmp_path)))
    arguments = ["--config", str(config)]
    if name == "sweep":
        arguments += ["--grid", "seed=1,2"]
    if name in ("generate", "chat"):
        arguments = ["--model", str(tiny)]
    if name == "generate":
        arguments += ["--prompt", "Hello"]
    with pytest.raises(Kept):
        COMMANDS[name](arguments)

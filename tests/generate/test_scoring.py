"""Answers that are scored: on a mesh they are those of one device, by one program."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from jaxpeft.config.evaluation import EvaluationSection
from jaxpeft.errors import InputError
from jaxpeft.generate import scoring

CHILD = """
import json
import jax
from jaxpeft import data, metrics
from jaxpeft.assembly.base import open_base
from jaxpeft.config import ModelSection
from jaxpeft.config.data import DataSection
from jaxpeft.config.evaluation import EvaluationSection
from jaxpeft.devices import sharding
from jaxpeft.generate import steps
from jaxpeft.generate.scoring import Scoring

base = open_base(ModelSection(path="jaxpeft:tiny-llama", dtype="float32"))
source = {"path": "jaxpeft:weather/eval.json", "max_samples": 6}
section = DataSection.model_validate({"train": source, "eval": source})
batches = data.load_eval(section, base.tokenizer, batch_size=4)
made = metrics.made([], ["rouge_l", "choice_accuracy"])
found = []
for sizes in ({}, {"data": 2, "fsdp": 2}, {"data": 2, "fsdp": 1, "tensor": 2}):
    mesh = sharding.make_mesh(**sizes, devices=jax.devices()[: 4 if sizes else 1])
    asked = EvaluationSection(max_new_tokens=6)
    scoring = Scoring(base, batches, made, asked, 4, mesh)
    params, before = base.load(mesh), steps.advance._cache_size()
    first, again = (scoring.run(params) for _ in range(2))
    assert first == again
    assert steps.advance._cache_size() == before + 1
    found.append([first.figures, first.rows])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_mesh_answers_as_one_device_does_and_compiles_once(of_devices):
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=of_devices(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout)
    assert len(one[1]) == 6 and 0 < one[0]["eval_rouge_l"] < 1
    assert others == [one, one]


def test_what_writes_no_text_is_not_asked():
    cfg = SimpleNamespace(
        evaluation=EvaluationSection(), objective=SimpleNamespace(name="reward")
    )
    objective = SimpleNamespace(predictions=print)
    run: Any = SimpleNamespace(cfg=cfg, evaluation=[1], objective=objective)
    assert scoring.of_run(run) is None
    with pytest.raises(InputError, match="rouge_l with objective.name 'reward', which"):
        scoring.of_run(run, ["rouge_l"])
    run.evaluation = None
    with pytest.raises(InputError, match="--metric: needs evaluation data"):
        scoring.of_run(run, ["rouge_l"])

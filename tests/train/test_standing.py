"""What a checkpoint and the metrics say of an evaluation that was cut short."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from jaxpeft.train.standing import EVALUATION_DUE, repeated

DUE = {EVALUATION_DUE: True}
TRAINED = {"step": 20, "loss": 1.0}
EVALUATED = {"step": 20, "eval_loss": 0.1 + 0.2}


@pytest.mark.parametrize(
    ("note", "lines", "found"),
    [
        (DUE, [TRAINED, EVALUATED], [EVALUATED]),  # to the last bit
        (DUE, [TRAINED], None),  # still to be made
        (DUE, [{**EVALUATED, "step": 15}, TRAINED], None),
        (DUE, [{**EVALUATED, "eval_loss": None}], None),  # not known which it was
        ({}, [TRAINED, EVALUATED], None),  # none was due
    ],
)
def test_an_evaluation_that_has_been_repeated_is_read(tmp_path, note, lines, found):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    training = SimpleNamespace(figure="eval_loss")
    cfg = SimpleNamespace(training=training)
    run: Any = SimpleNamespace(output=tmp_path, cfg=cfg)
    assert repeated([run], note, 20) == found
    assert repeated([run, run], note, 20) is None  # each has a file of its own
    training.figure = "eval_exact_match"  # of which the line says nothing
    assert repeated([run], note, 20) is None

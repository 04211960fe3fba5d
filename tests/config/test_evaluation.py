"""The section `evaluation`, and the figure that evaluations are compared by."""

import pytest

from jaxpeft import config
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.errors import InputError
from jaxpeft.metrics import METRICS

BASE = {
    "output_dir": "run",
    "model": {"path": "model"},
    "data": {"train": {"path": "a.json"}, "eval": {"path": "b.json"}},
}


def parsed(**sections):
    return config.parse({**BASE, **sections}, "file", TABLES, METRICS)


def test_a_name_alone_is_a_metric_with_its_defaults():
    own = {"name": "exact_match", "extract": "gsm8k"}
    one = parsed(evaluation={"metrics": "rouge_l"}).evaluation
    assert [entry.name for entry in one.metrics] == ["rouge_l"]
    two = parsed(evaluation={"metrics": ["rouge_l", own]})
    assert two.evaluation.metrics[1].options == {"extract": "gsm8k"}
    read = config.strict_yaml.load(config.to_yaml(two).encode(), "file")
    assert config.parse(read, "file", TABLES, METRICS) == two
    assert parsed(evaluation=None).evaluation.metrics == ()


def test_all_that_is_wrong_with_metrics_is_told_at_once():
    wrong = [
        {"name": "exact_match", "extract": "gsm"},
        {"name": "rouge_l", "stem": True},
        "belu",
        "rougeL",
        3,
    ]
    with pytest.raises(InputError) as raised:
        parsed(evaluation={"metrics": wrong, "max_example": 3})
    told = "\n".join(raised.value.problems)
    assert "evaluation.metrics[0].extract: found 'gsm'; must be 'none', 'gsm8k'" in told
    assert "evaluation.metrics[1].stem: found true; is not a key of 'rouge_l'" in told
    assert "evaluation.metrics[2].name: found 'belu'; is not known; did" in told
    assert "evaluation.metrics[3].name: found 'rouge_l' twice" in told
    assert "evaluation.metrics[4]: found 3; must be a mapping" in told
    assert "evaluation.max_example: found 3; there is no such key" in told


@pytest.mark.parametrize(
    ("training", "figure", "greater"),
    [
        ({}, "eval_loss", False),
        ({"metric_for_best_model": "eval_loss"}, "eval_loss", False),
        ({"metric_for_best_model": "exact_match"}, "eval_exact_match", True),
        ({"metric_for_best_model": "perplexity"}, "eval_perplexity", False),
        (
            {"metric_for_best_model": "edits", "greater_is_better": False},
            "eval_edits",
            False,
        ),
    ],
)
def test_the_figure_and_which_way_it_is_better(training, figure, greater):
    found = parsed(training=training).training
    assert (found.figure, found.prefers_greater) == (figure, greater)


def test_metrics_need_data_to_evaluate_on():
    data = {"train": {"path": "a.json"}}
    with pytest.raises(InputError, match="evaluation.metrics: found 'bleu'; needs"):
        parsed(data=data, evaluation={"metrics": ["bleu"]})
    with pytest.raises(InputError, match="metric_for_best_model: found 'f1'; needs"):
        parsed(data=data, training={"metric_for_best_model": "f1"})
    assert parsed(data=data, training={"metric_for_best_model": "loss"})

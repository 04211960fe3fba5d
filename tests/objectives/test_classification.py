"""The loss of a class, and the labels that data and configuration have."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from jaxpeft import config, data, models, objectives
from jaxpeft.config import DataSection
from jaxpeft.data.labelled import Labels, found, number_of
from jaxpeft.errors import InputError
from jaxpeft.hf import load_tokenizer
from jaxpeft.objectives import OBJECTIVES, evaluation
from jaxpeft.objectives.classification import classification, labels_of
from jaxpeft.objectives.evaluation import figures

RNG = np.random.default_rng(0)


def batch_of(rows=5, seq=6):
    tokens = RNG.integers(4, 61, (rows, seq)).astype(np.int32)
    return {
        "tokens": tokens,
        "positions": np.broadcast_to(np.arange(seq, dtype=np.int32), tokens.shape),
        "label": RNG.integers(0, 3, rows).astype(np.int32),
        "weight": np.array([1, 1, 0.5, 2, 0], np.float32)[:rows],
    }


@pytest.fixture(scope="module")
def model(llama):
    cfg = models.with_scores(llama.cfg, 3, (), None)
    head = RNG.normal(size=(32, 3)).astype(np.float32)
    return {"model": llama.params["model"], "score": {"kernel": head}}, cfg


@pytest.mark.slow
def test_loss_and_metrics_are_torch_s(model):
    import torch

    params, cfg = model
    batch, key = batch_of(), jax.random.key(0)
    found = classification(num_labels=3).loss(params, (), batch, cfg, key)
    scores = torch.tensor(np.asarray(models.scores(params, batch, cfg)))
    labels, weight = (torch.tensor(batch[n]) for n in ("label", "weight"))
    each = torch.nn.functional.cross_entropy(scores, labels.long(), reduction="none")
    np.testing.assert_allclose(found.total, (each * weight).sum(), rtol=1e-5)
    hits = (scores.argmax(-1) == labels).float() * weight
    assert found.weight == 4.5
    np.testing.assert_allclose(found.metrics["accuracy"], (float(hits.sum()), 4.5))
    report = figures(
        classification(num_labels=3),
        [classification(num_labels=3).sums(params, (), batch, cfg)],
    )
    assert report["eval_loss"] == pytest.approx(float(found.total) / 4.5)
    assert report["eval_accuracy"] == pytest.approx(float(hits.sum()) / 4.5)
    assert report["eval_examples"] == 4


def test_lines_of_predictions_leave_padding_out(model):
    params, cfg = model
    said: Any = classification(labels=("a", "b", "c")).predictions
    batch = batch_of()
    scores = evaluation.streamed([said.scores(params, batch, cfg)])[0]
    lines = said.lines(scores, batch)
    assert len(lines) == 4
    assert lines[0]["label"] == "abc"[batch["label"][0]]
    assert lines[0]["prediction"] == "abc"[int(np.argmax(scores[0]))]
    np.testing.assert_allclose(lines[3]["scores"], scores[3])


@pytest.fixture
def section(tmp_path):
    """section(records, format): a section `data` of a file with these records."""

    def make(records, format="text", suffix="jsonl", **settings):
        path = tmp_path / f"train.{suffix}"
        if suffix == "csv":
            lines = [",".join(records[0]), *(",".join(r.values()) for r in records)]
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_text("".join(json.dumps(r) + "\n" for r in records))
        source = {"path": str(path), "format": format, **settings}
        return DataSection.model_validate({"train": source, "max_length": 32})

    return make


def texts(*labels):
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("b", "a", "b"), Labels(2, ("a", "b"))),
        ((0, 2, 1), Labels(3)),
        ((True, False), Labels(2)),
        (("0", "10", "2"), Labels(11)),  # as csv has them
        ((0, 0), Labels(2)),
    ],
)
def test_labels_are_those_of_the_training_data(labels, expected, section):
    assert found(section(texts(*labels))) == expected


def test_labels_of_a_csv_and_of_a_column_of_another_name(section):
    records = [{"text": "a", "kind": "x"}, {"text": "b", "kind": "y"}]
    made = section(records, suffix="csv", fields={"label": "kind"})
    assert found(made) == Labels(2, ("x", "y"))


def test_what_the_data_say_becomes_keys(section):
    named, numbers = section(texts("b", "a")), None
    assert labels_of({}, named) == {"num_labels": 2, "labels": ["a", "b"]}
    assert labels_of({"num_labels": 2}, named) == {"labels": ["a", "b"]}
    assert labels_of({"labels": ["b", "a"]}, named) == {"num_labels": 2}
    numbers = section(texts(0, 3))
    assert labels_of({}, numbers) == {"num_labels": 4}
    assert labels_of({"num_labels": 6}, numbers) == {}


@pytest.mark.parametrize(
    ("labels", "given", "problem"),
    [
        ((0, 3), 2, "found 2; the training data have 4 labels: 0 to 3"),
        (("a", "b"), 3, "found 3; the training data have 2 labels: a, b"),
        ((0, -1), None, "have the label -1"),
        ((None, None), None, "no record has a label"),
        (("good", "good"), None, "all records have the label 'good'"),
    ],
)
def test_labels_that_disagree_are_refused(labels, given, problem, section):
    options = {} if given is None else {"num_labels": given}
    with pytest.raises(InputError, match=problem):
        labels_of(options, section(texts(*labels)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_labels": 3, "labels": ["a", "b"]}, "beside 2 labels"),
        ({"labels": ["a", "a"]}, "there have to be two or more"),
        ({"labels": ["a"]}, "there have to be two or more"),
        ({"num_labels": 1}, "objective.num_labels: found 1"),
    ],
)
def test_keys_that_disagree_are_refused(options, problem):
    problems = config.check_call("objective", "classification", OBJECTIVES, options)
    if problems:
        assert problem in problems[0]
        return
    with pytest.raises(InputError, match=problem):
        classification(**options)


def test_a_label_is_a_number_or_a_name():
    labels = Labels(3, ("a", "b", "c"))
    given = ("b", 1, "c", "2", 2.0, True)
    assert [number_of(x, labels, "label") for x in given] == [1, 1, 2, 2, 2, 1]
    for wrong in ("d", 3, 0.5):
        with pytest.raises(InputError, match=f"{wrong!r} is no label"):
            number_of(wrong, labels, "label")
    with pytest.raises(InputError, match="found 3; .* from 0 to 2"):
        number_of(3, Labels(3), "label")


def test_a_name_that_is_a_number_is_no_place_in_the_list(section):
    stars = Labels(3, ("3", "2", "1"))
    given = (1, "1", 1.0, 3)
    assert [number_of(x, stars, "label") for x in given] == [2, 2, 2, 0]
    truth = Labels(2, ("true", "false"))
    assert [number_of(x, truth, "label") for x in (True, "false", False)] == [0, 1, 1]
    for wrong, labels in ((0, stars), (1, truth), (2, Labels(3, ("a", "b", "7")))):
        with pytest.raises(InputError, match=f"{wrong!r} is no label"):
            number_of(wrong, labels, "label")
    mixed = found(section(texts(1, "2", "good", True)))
    assert mixed == Labels(4, ("1", "2", "good", "true"))
    assert [number_of(x, mixed, "label") for x in (1, "2", True)] == [0, 1, 3]
    classes = classification(labels=(1, 2)).head
    assert classes is not None and classes.names == ("1", "2")


@pytest.fixture(scope="module")
def tokenizer(asset_model):
    return load_tokenizer(asset_model)


def test_a_text_is_what_the_tokenizer_makes_of_it(section, tokenizer):
    made = section(texts("b", "a", "b"))
    batches = objectives.classification(labels=("a", "b")).load_train(
        made, tokenizer, batch_size=3, seed=0
    )
    examples = batches.examples
    expected = [tokenizer(f"text {i}")["input_ids"] for i in range(3)]
    np.testing.assert_array_equal(examples.tokens, np.concatenate(expected))
    np.testing.assert_array_equal(examples.columns["label"], [1, 0, 1])
    batch = batches[0]
    assert batch["label"].shape == batch["weight"].shape == (3,)


def test_a_conversation_is_what_the_template_makes_of_it(section, tokenizer):
    talk = [{"role": "user", "content": "How?"}]
    answered = [*talk, {"role": "assistant", "content": "So."}]
    records = [{"messages": talk, "label": 0}, {"messages": answered, "label": 1}]
    batches = objectives.classification(num_labels=2).load_train(
        section(records, "messages"), tokenizer, batch_size=2, seed=0
    )
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in (talk, answered)]
    expected = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    np.testing.assert_array_equal(batches.examples.tokens, np.concatenate(expected))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"text": "a"}, "column 'label' is missing"),
        ({"text": "a", "label": None}, "column 'label' is null"),
        ({"text": "a", "label": 5}, "found 5; objective.num_labels is 2"),
        ({"text": " ", "label": 1}, "column 'text' is empty"),
    ],
)
def test_records_that_cannot_be_used_are_named(record, problem, section, tokenizer):
    made = section([*texts(0, 1), record])
    load = objectives.classification(num_labels=2).load_train
    with pytest.raises(InputError, match=rf"train.jsonl:3.*{problem}"):
        load(made, tokenizer, batch_size=2, seed=0)


def test_packing_and_plain_text_files_are_refused(section, tokenizer, tmp_path):
    load = objectives.classification(num_labels=2).load_train
    packed = section(texts(0, 1)).model_copy(update={"packing": True})
    with pytest.raises(InputError, match="data.packing: found true"):
        load(packed, tokenizer, batch_size=2, seed=0)
    (tmp_path / "a.txt").write_text("one\n")
    source = {"path": str(tmp_path / "a.txt"), "format": "text"}
    plain = DataSection.model_validate({"train": source})
    with pytest.raises(InputError, match="without label and weight"):
        load(plain, tokenizer, batch_size=2, seed=0)


def test_classes_without_an_example_are_told(section, tokenizer):
    load = objectives.classification(num_labels=4).load_train
    batches = load(section(texts(0, 2)), tokenizer, batch_size=2, seed=0)
    remarks = batches.summary().sources[0].remarks
    assert any("no example has the label 1, 3, of 4 labels" in r for r in remarks)
    assert isinstance(batches, data.Batches)

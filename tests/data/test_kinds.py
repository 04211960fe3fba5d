"""What an objective wants of records: columns, weights, examples drawn together."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxpeft.assembly.places import check_together
from jaxpeft.config.data import DataSection
from jaxpeft.data import load_eval, load_train
from jaxpeft.data.columns import string, value_of
from jaxpeft.data.conversation import Sample, checked
from jaxpeft.data.formats import SFT, alpaca
from jaxpeft.data.kinds import Kind
from jaxpeft.errors import InputError
from jaxpeft.objectives.objective import row_shapes

from .conftest import one


def pair(record, fields):
    prompt = {"role": "user", "content": string(record, fields, "prompt")}
    talks = [
        checked([prompt, {"role": "assistant", "content": string(record, fields, n)}])
        for n in ("chosen", "rejected")
    ]
    margin = value_of(record, fields, "margin", required=True)
    return Sample(tuple(talks), {"margin": margin})


PAIRS = Kind(
    "pairs",
    {"alpaca": pair},
    {"alpaca": ("prompt", "chosen", "rejected", "margin")},
    columns={"margin": "float32"},
    together=2,
    cuts="prompt",
)


def record(n):
    answers = {"chosen": f"yes {n} " * (1 + n % 4), "rejected": f"no {n}"}
    return {"prompt": f"question {n}", **answers, "margin": n / 2}


def section(path, **settings):
    train = {"path": path, "format": "alpaca"}
    return DataSection.model_validate({"train": train, "max_length": 64, **settings})


def answers(batch, tokenizer):
    rows = zip(batch["targets"], batch["supervised"])
    return [tokenizer.decode(targets[mask]) for targets, mask in rows]


def number(answer):
    return int(answer.split()[1].removesuffix("<|im_end|>"))


def test_a_record_s_examples_stand_side_by_side_with_their_columns(write, tokenizer):
    path = write("d.json", [record(n) for n in range(7)])
    batches = load_train(
        section(path), tokenizer, batch_size=4, seed=5, kind=PAIRS, vocab_size=None
    )
    assert (len(batches.examples), batches.steps_per_epoch) == (14, 3.5)
    seen = []
    for step in range(7):  # two epochs
        batch = batches[step]
        told = answers(batch, tokenizer)
        assert [text.split()[0] for text in told] == ["yes", "no"] * 2
        numbers = [number(text) for text in told]
        assert numbers[::2] == numbers[1::2]
        np.testing.assert_array_equal(batch["margin"], np.array(numbers, "f4") / 2)
        assert batch["margin"].dtype == np.float32
        seen += numbers[::2]
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7)) != seen[:7]
    shapes = row_shapes(batch["tokens"].shape, True, columns=PAIRS.columns)
    assert {n: (x.shape, x.dtype) for n, x in batch.items()} == {
        n: (x.shape, x.dtype) for n, x in shapes.items()
    }


def test_evaluation_holds_out_whole_records_and_uses_some(write, tokenizer):
    path = write("d.json", [record(n) for n in range(10)])
    load = partial(load_eval, section(path, eval_split=0.3), tokenizer, kind=PAIRS)
    held = load(batch_size=4)
    assert held is not None
    assert (len(held.examples), len(held)) == (6, 2)
    told = answers(held[0], tokenizer) + answers(held[1], tokenizer)
    assert [number(text) for text in told[:6:2]] == [number(t) for t in told[1:6:2]]
    assert told[6:] == ["", ""]  # the last batch is filled up
    np.testing.assert_array_equal(held[1]["margin"][2:], 0)
    some = held.at_most(2)
    assert (list(some.numbers), some.share()) == ([0, 1, 2, 3], "4 of 6 examples")
    with pytest.raises(InputError, match=r"eval_batch_size: found 3; 2 examples"):
        load(batch_size=3)


def test_a_pair_is_cut_in_its_prompt_alike(write, tokenizer):
    """So that the two answers are weighed after the same question."""
    long = record(3) | {"prompt": " ".join(f"word{n}" for n in range(80))}
    long["chosen"] = "yes " * 10
    path = write("d.json", [long])
    batches = load_train(section(path), tokenizer, batch_size=2, seed=0, kind=PAIRS)
    batch = batches[0]
    first, second = (int(np.flatnonzero(mask)[0]) for mask in batch["supervised"])
    assert first == second  # what stands before the answer, less one
    np.testing.assert_array_equal(
        batch["tokens"][0, :first], batch["tokens"][1, :first]
    )
    chosen, rejected = answers(batch, tokenizer)
    assert chosen.startswith("yes yes yes") and rejected == "no 3<|im_end|>"
    whole = one(
        checked(
            [
                {"role": "user", "content": long["prompt"]},
                {"role": "assistant", "content": long["chosen"]},
            ]
        ),
        tokenizer,
    )
    kept = batch["tokens"][0, : int((batch["segments"][0] > 0).sum())]
    assert len(kept) == 64
    np.testing.assert_array_equal(kept, whole.tokens[-64:])
    assert list(batches.examples.left_out)[0] == len(whole.tokens) - 64


def test_tokens_weigh_what_record_and_message_say(write, tokenizer):
    def weighted(record, fields):
        read = alpaca(record, fields)
        if "loss_weight" in record:
            read.messages[-1]["loss_weight"] = record["loss_weight"]
        return Sample((read,), weight=record.get("weight", 1.0))

    kind = Kind("weighted", {"alpaca": weighted}, SFT.fields)
    plain = {"instruction": "q", "output": "a"}
    more = (
        {},
        {"weight": 0.5},
        {"weight": 0.5, "loss_weight": 0.5},
        {"loss_weight": 0},
    )
    path = write("d.json", [plain | own for own in more])
    settings = section(path, shuffle=False)
    batches = load_train(settings, tokenizer, batch_size=4, seed=0, kind=kind)
    batch = batches[0]
    for row, weight in enumerate((1, 0.5, 0.25, 0)):
        expected = batch["supervised"][0] * np.float32(weight)
        np.testing.assert_array_equal(batch["weights"][row], expected)
        np.testing.assert_array_equal(batch["supervised"][row], expected > 0)
    alike = load_train(
        section(write("e.json", [plain])), tokenizer, batch_size=1, seed=0, kind=kind
    )
    assert "weights" not in alike[0]  # all weigh 1: the program of before


def test_what_cannot_be_is_refused(write, tokenizer):
    path = write("d.json", [record(1)])
    load = partial(load_train, tokenizer=tokenizer, seed=0, kind=PAIRS)
    with pytest.raises(InputError, match=r"data.packing: found true; .* together"):
        load(section(path, packing=True), batch_size=2)
    with pytest.raises(InputError, match="training.batch_size: found 3; 2 examples"):
        load(section(path), batch_size=3)
    with pytest.raises(InputError, match="format 'sharegpt' has not what"):
        settings = section(path)
        (source,) = settings.train
        other = source.model_copy(update={"format": "sharegpt"})
        load(settings.model_copy(update={"train": (other,)}), batch_size=2)


def test_what_a_kind_has_to_say_of_a_source(write, tokenizer):
    def check(path, examples):
        assert len(examples) == 2 and list(examples.columns["margin"]) == [0.5, 0.5]
        return [f"{path} is odd"]

    path = write("d.json", [record(1)])
    kind = Kind("p", PAIRS.readers, PAIRS.fields, PAIRS.columns, 2, check=check)
    batches = load_train(section(path), tokenizer, batch_size=2, seed=0, kind=kind)
    assert f"{path} is odd" in batches.summary().sources[0].remarks


def test_accumulation_and_meshes_keep_records_whole():
    Of: Any = SimpleNamespace

    def cfg(size, parts=1, evaluation=None):
        training = Of(batch_size=size, gradient_accumulation_steps=parts)
        return Of(training=training, data=Of(eval_batch_size=evaluation))

    mesh = Of(shape={"data": 2, "fsdp": 1})
    check_together(cfg(8, 2, 4), mesh, 2)
    check_together(cfg(2, 1, 2), mesh, 1)
    with pytest.raises(InputError, match=r"batch_size: found 4; .* use 8"):
        check_together(cfg(4, 2), mesh, 2)
    with pytest.raises(InputError, match=r"eval_batch_size: found 6; .* use 8"):
        check_together(cfg(8, 2, 6), mesh, 2)

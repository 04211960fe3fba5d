"""From a data section to batches: real files, whole sections, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jaxpeft import console
from jaxpeft.assembly.summary import data_warnings
from jaxpeft.config.data import DataSection
from jaxpeft.data import EvalBatches, empty_answers, load_eval, load_train, sources
from jaxpeft.data.chat_formats import messages
from jaxpeft.errors import InputError


def source(path, format="alpaca", **settings):
    return {"path": str(path), "format": format, **settings}


def section(*train, **settings):
    base = {
        "max_length": 128,
        "packing": False,
        "shuffle": False,
        "train_on": "assistant",
        "length_buckets": 3,
    }
    return DataSection.model_validate({"train": list(train), **base, **settings})


def load(*train, tokenizer, batch_size=2, vocab_size=None, **settings):
    return load_train(
        section(*train, **settings),
        tokenizer,
        batch_size=batch_size,
        seed=0,
        vocab_size=vocab_size,
    )


ALPACA = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(5)]


def test_reading_that_takes_long_is_told(write, tokenizer, monkeypatch, capsys):
    parts = sources.parts

    def two(*arguments):
        for part in parts(*arguments):
            yield replace(part.first(2), done=0.4)
            yield part.first(3)

    monkeypatch.setattr(console, "LONG", 0.0)
    monkeypatch.setattr(sources, "parts", two)
    path = write("data.json", json.dumps(ALPACA))
    load(source(path), tokenizer=tokenizer)
    told = capsys.readouterr().err
    assert f"reading and tokenizing {path}, records: 2 of 5, " in told
    assert " a second, " in told


def test_step_k_trains_on_the_file_in_order(write, tokenizer):
    batches = load(source(write("d.json", ALPACA)), tokenizer=tokenizer)
    for step in range(3):
        batch = batches[step]
        for row in range(2):
            record = ALPACA[(2 * step + row) % 5]
            ids = tokenizer.apply_chat_template(
                [
                    {"role": "user", "content": record["instruction"]},
                    {"role": "assistant", "content": record["output"]},
                ]
            )["input_ids"]
            used = batch["segments"][row] > 0
            np.testing.assert_array_equal(batch["tokens"][row, used], ids)
            targets = batch["targets"][row, batch["supervised"][row]]
            assert tokenizer.decode(targets) == record["output"] + "<|im_end|>"


def test_the_summary_counts_cuts_and_examples_without_target(write, tokenizer):
    records = [*ALPACA, {"instruction": "long " * 90, "output": "lost"}]
    batches = load(source(write("d.json", records)), tokenizer=tokenizer, max_length=40)
    summary = batches.summary()
    assert (summary.examples, summary.truncated, summary.without_target) == (6, 1, 1)
    assert summary.lengths == batches.lengths == (32, 40)
    assert summary.sources[0].examples == 6
    left_out = batches.examples.left_out
    assert left_out.tolist() == [0] * 5 + [left_out[-1]] and left_out[-1] > 40
    supervised = sum(int(batches[step]["supervised"].sum()) for step in range(3))
    assert summary.supervised == supervised


def test_max_samples_and_several_sources(write, tokenizer):
    texts = write("t.txt", "one\ntwo\nthree")
    batches = load(
        source(write("d.json", ALPACA), max_samples=2),
        source(texts, format="text", weight=2.0),
        tokenizer=tokenizer,
    )
    assert [s.examples for s in batches.summary().sources] == [2, 3]
    assert [s.weight for s in batches.summary().sources] == [1.0, 2.0]


def test_packing_splits_long_documents(write, tokenizer):
    path = write("t.txt", "All work and no play. " * 100)
    packed = load(source(path, "text"), tokenizer=tokenizer, packing=True)
    cut = load(source(path, "text"), tokenizer=tokenizer)
    assert (packed.summary().truncated, cut.summary().truncated) == (0, 1)
    assert packed.summary().tokens > 4 * cut.summary().tokens


def test_evaluation_data(write, tokenizer):
    path = write("d.json", ALPACA)
    assert load_eval(section(source(path)), tokenizer, batch_size=2) is None
    settings = section(source(path), eval=(source(path), source(path)))
    batches = load_eval(settings, tokenizer, batch_size=4)
    assert isinstance(batches, EvalBatches)
    assert batches.summary().examples == 10
    assert len(batches) == 3


def test_a_share_of_the_training_data_is_held_out(write, tokenizer):
    path = write("d.json", ALPACA)
    wanted = section(source(path), eval_split=0.4)
    train = load(source(path), tokenizer=tokenizer, batch_size=1, eval_split=0.4)
    held = load_eval(wanted, tokenizer, batch_size=1)
    assert (len(train.examples), len(held.examples)) == (3, 2)

    def questions(batches):
        examples = batches.examples
        return {tuple(examples.question(n)[0]) for n in range(len(examples))}

    assert len(questions(train) | questions(held)) == 5


def test_a_template_that_ends_no_answer_is_told(write, tokenizer_with):
    # As that of upstage/SOLAR-10.7B-Instruct-v1.0.
    turn = "'### ' + message['role'] + ':\\n' + message['content'] + '\\n\\n'"
    prompt = "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
    loop = "{% for message in messages %}{{ TURN }}{% endfor %}" + prompt
    path = write("d.json", ALPACA)
    for end, told in (("", True), (" + eos_token", False)):
        made = tokenizer_with(loop.replace("TURN", turn + end))
        (read,) = load(source(path), tokenizer=made).summary().sources
        assert any("not taught to stop" in remark for remark in read.remarks) == told


def turns(*answers):
    """A record of format messages, an answer a question."""
    pairs = [({"role": "user", "content": "q"}, answer) for answer in answers]
    return {"messages": [message for pair in pairs for message in pair]}


def answer(content, **more):
    return {"role": "assistant", "content": content, **more}


CALL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("record", "empty"),
    [
        (turns(answer("a")), False),
        (turns(answer("")), True),
        (turns(answer(" \n")), True),
        (turns(answer(""), answer("b")), False),
        (turns(answer("a", weight=0), answer("")), True),
        (turns(answer("", weight=0)), False),  # nothing is learned
        (turns(answer("", tool_calls=[CALL])), False),
        (turns(answer("", reasoning_content="so")), False),
    ],
)
def test_answers_are_empty_without_text_and_calls(record, empty):
    assert empty_answers.is_empty(messages(record, {})) == empty


def test_empty_answers_are_counted_and_learned_as_before(write, tokenizer):
    fields = {"instruction": "frage", "output": "antwort"}
    path = write("d.csv", "frage;antwort\nHi;Ho\nHo;\n;\nDa;Do\n")
    summary = load(source(path, fields=fields), tokenizer=tokenizer).summary()
    assert data_warnings("training", summary) == [
        f"{path}: 2 of 4 answers are empty: the model learns to end its turn at once; "
        f"delete those rows, the first being {path}:3 (row 2)"
    ]
    filled = write("f.csv", "frage;antwort\nHi;Ho\nDa;Do\n")
    other = load(source(filled, fields=fields), tokenizer=tokenizer).summary()
    assert other.sources[0].remarks == ()
    assert summary.supervised == other.supervised + 2  # the end of turn of each
    texts = write("t.jsonl", '{"text": ""}\n{"text": "a"}\n')
    held = load_eval(
        section(source(path), eval=(source(texts, "text"),)), tokenizer, batch_size=1
    )
    (remark,) = held.summary().sources[0].remarks
    assert "1 of 2 documents is empty: the model is measured by how it ends" in remark


def test_all_labels_masked(write, tokenizer):
    path = write("d.json", ALPACA)
    with pytest.raises(InputError, match=r"data\.train: none of the 5 examples has"):
        load(source(path), tokenizer=tokenizer, max_length=4)
    with pytest.raises(InputError, match=r"data\.eval: none of the 5"):
        settings = section(source(path), eval=(source(path),), max_length=4)
        load_eval(settings, tokenizer, batch_size=2)


def test_tokens_beyond_the_embedding(write, tokenizer):
    path = write("d.json", ALPACA)
    assert load(source(path), tokenizer=tokenizer, vocab_size=len(tokenizer))
    with pytest.raises(InputError, match="the model's embedding has 10 rows"):
        load(source(path), tokenizer=tokenizer, vocab_size=10)


def test_the_problems_of_all_sources_are_reported_together(write, tokenizer):
    with pytest.raises(InputError) as caught:
        load(
            source(write("a.jsonl", "{")),
            source(write("b.json", [{"instruction": "q"}])),
            source(write("c.json", ALPACA)),
            tokenizer=tokenizer,
        )
    assert len(caught.value.problems) == 2


TALKS = """[]
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": "no"}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}
{"messages": [{"role": "user", "content": "a"}]}
"""
REFUSING = (
    "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not no') }}"
    "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_rows_that_cannot_be_used_end_the_reading_or_are_left_out(
    write, tokenizer_with
):
    """No object, no answer, and one that the template refuses."""
    path, tokenizer = write("d.jsonl", TALKS), tokenizer_with(REFUSING)
    with pytest.raises(InputError) as caught:
        load(source(path, "messages"), tokenizer=tokenizer)
    assert [line.split(": ")[0][-15:] for line in caught.value.problems] == [
        "jsonl:1 (row 1)",
        "jsonl:5 (row 5)",
        "jsonl:3 (row 3)",
        path[-15:],
    ]
    assert "3 of 5 rows cannot be used; correct them, or" in caught.value.problems[-1]
    batches = load(source(path, "messages"), tokenizer=tokenizer, on_error="skip")
    summary = batches.summary()
    assert (summary.examples, summary.supervised) == (2, 4)
    (remark,) = summary.sources[0].remarks
    assert "3 rows (60.0% of all) are left out that cannot be used" in remark
    assert "1 times a record has to be an object with named columns" in remark
    places = [row.place[-15:] for row in summary.sources[0].skipped]
    assert places == [f"jsonl:{n} (row {n})" for n in (1, 5, 3)]
    assert "2 examples remain; " in remark and "the first: " in remark
    assert "jsonl:1 (row 1)" in remark


def test_a_refusal_of_the_template_is_counted(write, tokenizer_with):
    path = write("d.jsonl", "\n".join(TALKS.splitlines()[1:4]))
    tokenizer = tokenizer_with(REFUSING)
    with pytest.raises(InputError) as caught:
        load(source(path, "messages"), tokenizer=tokenizer)
    first, total = caught.value.problems
    assert "jsonl:2 (row 2): the chat template of" in first and "not no" in first
    assert f"{path}: 1 of 3 rows cannot be used" in total
    with pytest.raises(InputError, match="not no"):
        path = write("d.jsonl", TALKS.splitlines()[2])
        load(source(path, "messages"), tokenizer=tokenizer, on_error="skip")


@pytest.mark.parametrize(
    ("name", "format", "fields", "examples"),
    [
        ("e2e/train.json", "alpaca", None, 4247),
        (
            "gsm8k/eval.jsonl",
            "prompt_completion",
            {"prompt": "question", "completion": "answer"},
            973,
        ),
        ("llamafactory/alpaca_zh_demo.json", "alpaca", None, 1000),
        ("llamafactory/wiki_demo.txt", "text", None, 30),
        ("llamafactory/c4_demo.jsonl", "text", None, 300),
    ],
)
def test_real_files(shared_data, tokenizer, name, format, fields, examples):
    path = shared_data(name)
    batches = load(
        source(path, format, fields=fields), tokenizer=tokenizer, max_length=256
    )
    assert batches.summary().examples == examples
    assert batches[0]["tokens"].shape[1] in batches.lengths


def test_real_tool_calls(shared_data, tokenizer):
    """Every assistant turn of every conversation is learned, and nothing else."""
    import json

    path = shared_data("llamafactory/glaive_toolcall_en_demo.json")
    with open(path, encoding="utf-8") as file:
        records = json.load(file)
    batches = load(
        source(path, "sharegpt"), tokenizer=tokenizer, batch_size=1, max_length=8192
    )
    for step in range(0, len(records), 29):
        batch = batches[step]
        said = [
            turn["value"] + "<|im_end|>"
            for turn in records[step]["conversations"]
            if turn["from"] in ("gpt", "function_call")
        ]
        assert tokenizer.decode(batch["targets"][batch["supervised"]]) == "".join(said)


def test_files_below_a_folder_are_told_and_not_read(write, tokenizer, tmp_path):
    folder = tmp_path / "many"
    for name in ("a.json", "below/b.json", "below/c.json", "below/.d.json", "x/e.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(ALPACA))
    section = DataSection.model_validate({"train": {"path": str(folder)}})
    batches = load_train(section, tokenizer, batch_size=1, seed=0)
    assert len(batches.examples) == len(ALPACA)
    (line,) = batches.examples.sources[0].remarks
    assert (
        "2 data files are not read, in folders below it, such as below/b.json" in line
    )
    every = DataSection.model_validate({"train": {"path": f"{folder}/**/*.json"}})
    whole = load_train(every, tokenizer, batch_size=1, seed=0)
    assert len(whole.examples) == 3 * len(ALPACA)
    assert not whole.examples.sources[0].remarks

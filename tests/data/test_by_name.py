"""Data sets found by name in a `dataset_info.json`, and what is wrong with names."""

import re

import pytest

from jaxpeft.config import DataSection
from jaxpeft.data import by_name, formats, sources
from jaxpeft.errors import InputError

OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
OPENAI |= {"assistant_tag": "assistant", "system_tag": "system"}
PAIR = {"chosen": "chosen", "rejected": "rejected"}
CHAT = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": OPENAI}
# As LLaMA-Factory has them, and some more.
INFO = {
    "alpaca_en_demo": {"file_name": "alpaca_en_demo.json"},
    "alpaca_zh_demo": {"file_name": "alpaca_zh_demo.json"},
    "identity": {"file_name": "identity.json"},
    "wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}},
    "c4_demo": {"file_name": "c4_demo.jsonl", "columns": {"prompt": "text"}},
    "glaive_toolcall_en_demo": {
        "file_name": "glaive_toolcall_en_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "dpo_en_demo": {
        "file_name": "dpo_en_demo.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", **PAIR},
    },
    "dpo_mix_en": {
        "hf_hub_url": "llamafactory/DPO-En-Zh-20k",
        "ms_hub_url": "llamafactory/DPO",
        "subset": "en",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", **PAIR},
    },
    "ultrachat_200k": {
        "hf_hub_url": "HuggingFaceH4/ultrachat_200k",
        "split": "train_sft",
        "revision": "8049631c",
        **CHAT,
    },
    "kto_en_demo": {
        "file_name": "kto.jsonl",
        **CHAT,
        "columns": {"messages": "messages", "kto_tag": "wanted"},
    },
    "qa": {
        "file_name": "qa.csv",
        "columns": {"prompt": "question", "response": "answer"},
        "num_samples": 7,
    },
    "bucket": {"cloud_file_name": "memory://bucket/train.jsonl"},
    "starcoder": {"hf_hub_url": "big/starcoder", "folder": "python"},
    "program": {"script_url": "make.py", "file_name": "qa.csv"},
    "elsewhere": {"ms_hub_url": "someone/something"},
    "half": {"file_name": "qa.csv", "split": "train[:50%]"},
    "pictures": {"file_name": "qa.csv", "columns": {"images": "images"}},
    "odd": {"file_name": "qa.csv", "formatting": "sharegtp"},
    "lost": {"file_name": "qa.tsv"},
    "calls": {"file_name": "qa.csv", "columns": {"prompt": "question", "tools": "t"}},
    "typo": {"file_name": "identity.json", "nmu_samples": 3},
    "note": "what the team uses",
}
FILES = ("identity.json", "glaive_toolcall_en_demo.json", "wiki_demo.txt")


@pytest.fixture
def folder(write, tmp_path):
    write("data/dataset_info.json", INFO)
    write("data/qa.csv", "question,answer\n" + "q,a\n" * 9)
    for name in FILES:
        write(f"data/{name}", "x")
    return str(tmp_path / "data")


def looked_up(path, name=None, kind="answers", **keys):
    train = {"path": path, "name": name, **keys}
    section = DataSection.model_validate({"train": train})
    (source,) = by_name.looked_up(section, kind).train
    return source


def told(*args, **keys):
    with pytest.raises(InputError) as caught:
        looked_up(*args, **keys)
    (problem,) = caught.value.problems
    return problem


# Name, kind of records, and what the source then says but its defaults.
FOUND = [
    ("identity", "answers", {"path": "identity.json"}),
    ("wiki_demo", "answers", {"path": "wiki_demo.txt", "format": "text"}),
    (
        "glaive_toolcall_en_demo",
        "answers",
        {"path": "glaive_toolcall_en_demo.json", "format": "sharegpt"},
    ),
    (
        "qa",
        "answers",
        {
            "path": "qa.csv",
            "fields": {"instruction": "question", "output": "answer"},
            "max_samples": 7,
        },
    ),
]


@pytest.mark.parametrize(("name", "kind", "expected"), FOUND)
def test_a_name_is_a_source(name, kind, expected, folder):
    said = looked_up(folder, name, kind).model_dump()
    assert said == looked_up(f"{folder}/dataset_info.json", name, kind).model_dump()
    fields = {k: v for k, v in (said["fields"] or {}).items() if v is not None}
    plain = {"format": "alpaca", "fields": {}, "max_samples": None, "weight": 1.0}
    plain |= {"name": None, "split": None, "revision": None, "data_dir": None}
    expected = expected | {"path": f"{folder}/{expected['path']}"}
    assert said | {"fields": fields} == plain | expected


def test_a_name_may_be_of_the_hub_or_of_a_bucket(folder):
    chat = looked_up(folder, "ultrachat_200k")
    assert (chat.path, chat.name) == ("HuggingFaceH4/ultrachat_200k", None)
    assert (chat.split, chat.revision) == ("train_sft", "8049631c")
    assert chat.format == "messages"
    pairs = looked_up(folder, "dpo_mix_en", "pairs", split="train[:5%]")
    assert (pairs.path, pairs.name) == ("llamafactory/DPO-En-Zh-20k", "en")
    assert (pairs.format, pairs.split) == ("sharegpt", "train[:5%]")
    code = looked_up(folder, "starcoder")
    assert (code.path, code.data_dir) == ("big/starcoder", "python")
    import fsspec

    fsspec.filesystem("memory").pipe("/bucket/train.jsonl", b"{}")
    assert looked_up(folder, "bucket").path == "memory://bucket/train.jsonl"


def test_what_the_configuration_says_itself_counts(folder):
    own = {"fields": {"input": None, "output": "short"}, "max_samples": 3, "weight": 2}
    source = looked_up(folder, "qa", **own)
    assert source.fields == {
        "instruction": "question",
        "output": "short",
        "input": None,
        "system": None,
        "history": None,
    }
    assert (source.max_samples, source.weight) == (3, 2)
    assert looked_up(folder, "qa", max_samples=8).max_samples == 7
    text = looked_up(folder, "qa", format="text")  # the questions as documents
    assert (text.format, text.fields) == ("text", {"text": "question"})
    assert "glaive_toolcall_en_demo: has format sharegpt" in told(
        folder, "glaive_toolcall_en_demo", format="messages"
    )
    assert "split 'test' goes with a data set" in told(folder, "qa", split="test")


WRONG = {
    "pictures": "models here read text alone",
    "odd": "formatting: found 'sharegtp'; is not known; did you mean 'sharegpt'",
    "lost": "qa.tsv: there is no such data file",
    "program": "script_url make.py), which is never run here; write what it gives",
    "elsewhere": "ms_hub_url someone/something); fetch it",
    "half": "split: the whole file is read; cut it",
    "calls": "tools: format alpaca reads no such column",
    "dpo_en_demo": "holds pairs of answers .* objective.name: dpo",
    "note": "describes no data set 'note'",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_as_it_is_described(name, folder, write):
    columns = {"prompt": "question", "response": "answer", "tools": "t"}
    info = INFO | {"calls": {"file_name": "qa.csv", "columns": columns}}
    write("data/dataset_info.json", info)
    with pytest.raises(InputError) as caught:
        looked_up(folder, name)
    first = caught.value.problems[0]
    assert f"{folder}/dataset_info.json" in first and name in first
    pattern = WRONG[name] if ".*" in WRONG[name] else re.escape(WRONG[name])
    assert re.search(pattern, "\n".join(caught.value.problems))


def test_a_name_that_is_not_described(folder, write):
    problem = told(folder, "identitty")
    assert (
        "describes no data set 'identitty'; there are, the nearest first, identity"
        in (problem)
    )
    assert problem.endswith(f"and {len(INFO) - 1 - 10} more")
    assert "set name to one of them: alpaca_en_demo, alpaca_zh" in told(folder)
    assert "no kto_tag" in told(folder, "qa", "labelled")
    assert "not described as pairs" in told(folder, "qa", "pairs")
    path = write("data/dataset_info.json", '{"a": 1,}')
    assert "dataset_info.json: is not valid JSON" in told(folder, "a")
    write("data/dataset_info.json", {"features": {"a": {"dtype": "string"}}})
    assert "describes no data sets; write NAME" in told(path)
    # Another program's: the folder is one of the library datasets, as it was.
    assert looked_up(folder, "a").path == folder
    assert "no such data file" in str(
        pytest.raises(
            InputError,
            sources.found,
            sources.Source(looked_up("x/dataset_info.json").path),
        ).value
    )


def test_problems_of_all_sources_are_told_together(folder):
    names = [{"path": folder, "name": n} for n in ("identitty", "half")]
    section = DataSection.model_validate({"train": names, "eval": names[0]})
    with pytest.raises(InputError) as caught:
        by_name.looked_up(section, "answers")
    assert len(caught.value.problems) == 2


def test_a_key_that_means_nothing_is_remarked_on(folder, capsys):
    assert looked_up(folder, "typo").max_samples is None
    told = capsys.readouterr().err
    assert "typo: nmu_samples: is no key" in told and "mean 'num_samples'" in told


DEMOS = {
    "alpaca_en_demo": "user",
    "alpaca_zh_demo": "user",
    "identity": "user",
    "glaive_toolcall_en_demo": "user",
    "wiki_demo": None,
    "c4_demo": None,
}


@pytest.mark.parametrize("name", DEMOS)
def test_the_demonstrations_are_read_by_their_names(name, write, tmp_path, shared_data):
    entry = dict(INFO[name])
    entry["file_name"] = shared_data(f"llamafactory/{entry['file_name']}")
    write("dataset_info.json", {name: entry})
    source = looked_up(str(tmp_path), name, max_samples=20)
    rows = sources.read(sources.source_of(source), source.max_samples)
    parsed = formats.parse(rows, source.format, source.fields)
    assert len(parsed) == len(rows) > 1
    if DEMOS[name] is None:
        assert all(isinstance(item, str) and item for item in parsed)
    else:
        assert all(item.messages[0]["role"] == DEMOS[name] for item in parsed)

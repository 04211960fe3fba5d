"""LLaMA-Factory's data sets, by their descriptions, become sources that read alike."""

import json

import pytest

from jaxpeft.data import formats, sources

COMMON = {"model_name_or_path": "org/model"}


# A data set's name: our source, without its path.
SOURCES = {
    "identity": {"format": "alpaca"},
    "glaive": {"format": "sharegpt"},
    "chat": {"format": "messages"},
    "qa": {
        "format": "alpaca",
        "fields": {"instruction": "question", "output": "answer"},
        "max_samples": 7,
    },
}


@pytest.mark.parametrize("name", SOURCES)
def test_data_sets_are_looked_up_and_can_be_read(name, convert, data_folder):
    keys = {"dataset_dir": str(data_folder), "dataset": name, "max_samples": None}
    done = convert(COMMON | keys)
    (source,) = done.cfg.data.train
    expected = {"fields": None, "max_samples": None, **SOURCES[name]}
    assert {key: getattr(source, key) for key in expected} == expected
    rows = sources.read(source.path)
    (parsed, *_) = formats.parse(rows, source.format, source.fields)
    assert parsed.messages[-1]["role"] == "assistant"


def test_pretraining_reads_the_prompt_s_column_as_text(convert, data_folder):
    keys = {"dataset_dir": str(data_folder), "dataset": "c4_demo", "stage": "pt"}
    done = convert(COMMON | keys)
    (source,) = done.cfg.data.train
    assert source.format == "text"
    texts = formats.parse(sources.read(source.path), source.format, source.fields)
    assert texts == [f"document {i}" for i in range(4)]


def test_several_sets_are_drawn_by_their_sizes_as_if_put_together(convert, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder)}
    keys |= {"dataset": "identity,alpaca_en_demo"}
    assert [s.weight for s in convert(keys).cfg.data.train] == [3, 5]
    most = convert(keys | {"max_samples": 2})
    assert [s.weight for s in most.cfg.data.train] == [2, 2]
    mixed = {"mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3"}
    assert [s.weight for s in convert(keys | mixed).cfg.data.train] == [0.7, 0.3]
    assert "there it ends when the first" in convert(keys | mixed).out


def test_a_set_of_the_hub_is_one_here(convert, data_folder):
    keys = {"dataset_dir": str(data_folder), "dataset": "of_the_hub"}
    done = convert(COMMON | keys | {"max_samples": 9})
    (source,) = done.cfg.data.train
    assert (source.path, source.name, source.split) == ("org/set", "en", "train_sft")
    assert (source.format, source.max_samples) == ("sharegpt", 9)
    assert "org/set" not in done.out


def test_a_set_that_is_elsewhere_is_listed(convert, data_folder):
    keys = {"dataset_dir": str(data_folder), "dataset": "elsewhere"}
    done = convert(COMMON | keys)
    assert done.code == 0
    assert "someone/something" in done.out
    assert "hf download" in done.out


def test_without_the_list_of_sets_paths_are_guesses(convert, tmp_path):
    done = convert(COMMON | {"dataset_dir": str(tmp_path), "dataset": "mine"})
    assert done.code == 0
    assert "dataset: mine: " in done.out
    assert done.cfg.data.train[0].path == f"{tmp_path}/mine.json"
    (tmp_path / "mine.jsonl").write_text('{"instruction": "q", "output": "a"}')
    done = convert(COMMON | {"dataset_dir": str(tmp_path), "dataset": "mine"})
    assert done.cfg.data.train[0].path == f"{tmp_path}/mine.jsonl"


ROW = {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": []}
TURNS = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROLES = [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]
OPENAI = {"role_tag": "role", "content_tag": "content", "user_tag": "user"}
OPENAI |= {"assistant_tag": "assistant"}
SHAREGPT = {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
ASKED, ANSWERED, TOLD = ("user", "q"), ("assistant", "a"), ("system", "s")

# A record, its description, and the turns that LLaMA-Factory makes of it.
READ = [
    # Without `columns` the three of Alpaca, and neither system nor history.
    (ROW, {}, [("user", "q\ni"), ANSWERED]),
    (
        ROW,
        {"columns": {"prompt": "instruction", "response": "output"}},
        [ASKED, ANSWERED],
    ),
    (
        ROW,
        {
            "columns": {
                "prompt": "instruction",
                "response": "output",
                "system": "system",
            }
        },
        [TOLD, ASKED, ANSWERED],
    ),
    (
        {"context": None, **ROW},
        {
            "columns": {
                "prompt": "instruction",
                "query": "context",
                "response": "output",
            }
        },
        [ASKED, ANSWERED],
    ),
    (
        ROW,
        {"columns": {"query": "instruction", "response": "output"}},
        [ASKED, ANSWERED],
    ),
    ({"conversations": TURNS, "system": "s"}, SHAREGPT, [ASKED, ANSWERED]),
    (
        {"conversations": TURNS, "sys": "s"},
        {
            **SHAREGPT,
            "columns": {"messages": "conversations", "system": "sys"},
        },
        [TOLD, ASKED, ANSWERED],
    ),
    (
        {"messages": SAID, "sys": "s"},
        {
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "system": "sys"},
            "tags": OPENAI,
        },
        [TOLD, ASKED, ANSWERED],
    ),
    (
        {"conversations": ROLES},
        {
            **SHAREGPT,
            "tags": OPENAI | {"user_tag": "human", "assistant_tag": "gpt"},
        },
        [ASKED, ANSWERED],
    ),
]


def described(folder, record, description):
    """A data set `mine` of one record, and the keys of a file that trains on it."""
    (folder / "mine.json").write_text(json.dumps([record]))
    info = {"mine": {"file_name": "mine.json", **description}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return COMMON | {"dataset_dir": str(folder), "dataset": "mine"}


@pytest.mark.parametrize(("record", "description", "turns"), READ)
def test_a_description_reads_the_columns_that_it_does_there(
    record, description, turns, convert, data_folder
):
    done = convert(described(data_folder, record, description))
    assert (done.code, done.err) == (0, "")
    assert "without equivalent" not in done.out
    (source,) = done.cfg.data.train
    rows = sources.read(source.path)
    (parsed,) = formats.parse(rows, source.format, source.fields)
    assert [(turn["role"], turn["content"]) for turn in parsed.messages] == turns


# A description, and the key that is listed: what it names is not read here.
LISTED = [
    (
        {"columns": {"prompt": "instruction", "response": "output", "tools": "input"}},
        "tools",
    ),
    ({"columns": {"prompt": "instruction"}}, "columns"),
    ({**SHAREGPT, "tags": {"function_tag": "function"}}, "function_tag"),
    ({**SHAREGPT, "tags": OPENAI | {"user_tag": "USER"}}, "user_tag"),
    ({"split": "train[:10]"}, "split"),
    ({"nmu_samples": 3}, "nmu_samples"),
]


@pytest.mark.parametrize(("description", "key"), LISTED, ids=str)
def test_what_a_description_has_beyond_us_is_listed(
    description, key, convert, data_folder
):
    done = convert(described(data_folder, ROW, description))
    assert (done.code, done.err) == (0, "")
    assert f"  dataset: mine: {key}: " in done.out


REFUSED = [
    ({"num_samples": "all"}, {}, "num_samples: found 'all'; must be a number"),
    ({"formatting": ["x"]}, {}, 'formatting: found ["x"]'),
    ({"file_name": ["a", "b"]}, {}, "file_name: found"),
    ({"columns": {"prompt": ["a"]}}, {}, "columns: found"),
    ({}, {"max_samples": 0}, "max_samples: found 0; must be 1 or more"),
    ({}, {"mix_strategy": "concatt"}, "did you mean 'concat'"),
    ({}, {"interleave_probs": "0.5,0.5"}, "goes with a mix_strategy"),
    (
        {},
        {"mix_strategy": "interleave_over", "interleave_probs": "a,b"},
        "interleave_probs: found 'a,b'; must be numbers",
    ),
    (
        {},
        {"mix_strategy": "interleave_over", "interleave_probs": "0.5,0.5"},
        "must be 1, one for each data set",
    ),
]


@pytest.mark.parametrize(("description", "keys", "words"), REFUSED, ids=str)
def test_what_has_no_sense_there_is_refused(
    description, keys, words, convert, data_folder
):
    done = convert(described(data_folder, ROW, description) | keys)
    assert done.code == 2
    assert words.replace('"', "'") in done.err


def test_an_absolute_path_stays_as_it_is(convert, data_folder, tmp_path):
    keys = described(data_folder, ROW, {"file_name": str(tmp_path / "data/mine.json")})
    (source,) = convert(keys).cfg.data.train
    assert source.path == str(tmp_path / "data" / "mine.json")


def test_a_number_of_samples_is_drawn_there_whatever_the_file_holds(
    convert, data_folder
):
    keys = COMMON | {"dataset_dir": str(data_folder), "dataset": "qa,identity"}
    done = convert(keys | {"max_samples": "5"})
    assert [s.weight for s in done.cfg.data.train] == [5, 3]
    assert [s.max_samples for s in done.cfg.data.train] == [5, 5]
    assert "num_samples draws that many at random there" in done.out

"""Every format against hand-written conversations, and what each refuses."""

import pytest

from jaxpeft.data.formats import COLUMNS, FORMATS, Conversation, parse
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError


def read(format, record, fields=None):
    (item,) = parse([Row(record, "d.json (row 1)")], format, fields)
    if isinstance(item, str):
        return item
    return [(m["role"], m["content"]) for m in item.messages]


def test_every_format_names_its_columns():
    assert FORMATS.keys() == COLUMNS.keys()


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Do", "input": "it", "output": "o"}, "Do\nit"),
        ({"instruction": "Do", "input": "", "output": "o"}, "Do"),
        ({"instruction": "Do", "input": None, "output": "o"}, "Do"),
        ({"instruction": "Do", "output": "o"}, "Do"),
        ({"instruction": "", "input": "it", "output": "o"}, "it"),
    ],
)
def test_alpaca_prompt(record, prompt):
    assert read("alpaca", record) == [("user", prompt), ("assistant", "o")]


def test_alpaca_system_and_history():
    record = {
        "instruction": "i",
        "input": "",
        "output": "o",
        "system": "s",
        "history": [["q1", "a1"], ["q2", "a2"]],
    }
    assert read("alpaca", record) == [
        ("system", "s"),
        ("user", "q1"),
        ("assistant", "a1"),
        ("user", "q2"),
        ("assistant", "a2"),
        ("user", "i"),
        ("assistant", "o"),
    ]


def test_sharegpt_with_tools():
    call = '{"name": "f", "arguments": {}}'
    record = {
        "conversations": [
            {"from": "human", "value": "h"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "o"},
            {"from": "gpt", "value": "g"},
        ],
        "system": "s",
        "tools": '[{"name": "f", "parameters": {}}]',
    }
    (talk,) = parse([Row(record, "r")], "sharegpt")
    assert talk == Conversation(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "h"},
            {"role": "assistant", "content": call, "function_call": True},
            {"role": "tool", "content": "o"},
            {"role": "assistant", "content": "g"},
        ],
        [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    )


def test_messages_with_parts_and_tool_calls():
    call = {"id": "0", "function": {"name": "f", "arguments": '{"x": 1}'}}
    record = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1", "tool_call_id": "0"},
            {"role": "tool", "content": "2", "tool_call_id": "0"},
            {"role": "assistant", "content": "a", "name": None},
        ]
    }
    (talk,) = parse([Row(record, "r")], "messages")
    assert isinstance(talk, Conversation)
    assert [m["role"] for m in talk.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert talk.messages[1]["content"] == "u"
    assert talk.messages[2]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert talk.messages[5] == {"role": "assistant", "content": "a"}


def test_fields_rename_columns_in_every_format():
    fields = {"prompt": "question", "completion": "answer"}
    assert read("prompt_completion", {"question": "q", "answer": "a"}, fields) == [
        ("user", "q"),
        ("assistant", "a"),
    ]
    turns = [{"who": "human", "says": "q"}, {"who": "gpt", "says": "a"}]
    fields = {"conversations": "talk", "from": "who", "value": "says"}
    assert read("sharegpt", {"talk": turns}, fields)[1] == ("assistant", "a")
    turns = [{"r": "user", "c": "q"}, {"r": "assistant", "c": "a"}]
    fields = {"messages": "talk", "role": "r", "content": "c"}
    assert read("messages", {"talk": turns}, fields)[1] == ("assistant", "a")
    assert read("alpaca", {"i": "q", "output": "a"}, {"instruction": "i"})[0][1] == "q"
    assert read("text", {"body": "t"}, {"text": "body"}) == "t"


def test_text_takes_records_and_documents():
    assert read("text", {"text": "t", "url": 3}) == "t"
    assert read("text", "a document") == "a document"


def turns(*roles):
    return {"messages": [{"role": r, "content": "x"} for r in roles]}


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("alpaca", {"instruction": "i", "outptu": "o"}, "did you mean 'outptu'"),
        (
            "alpaca",
            {"instruction": "i", "text": "o"},
            "'output' is missing; the record",
        ),
        ("alpaca", {"instruction": "i", "output": None}, "'output' is null"),
        ("alpaca", {"instruction": "i", "output": 5}, "has to be text; it is int '5'"),
        ("alpaca", {"instruction": 1, "output": "o"}, "'instruction' has to be text"),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "history": [["q"]]},
            r"'history' needs \[question, answer\]",
        ),
        ("alpaca", "a document", "a txt file holds plain documents"),
        ("messages", {"messages": []}, "the conversation is empty"),
        ("messages", turns("system"), "the conversation is empty"),
        ("messages", {"messages": "hi"}, "'messages' has to be a list"),
        ("messages", {"messages": ["hi"]}, "turn 1 of 'messages' has to be an object"),
        (
            "messages",
            turns("user", "user", "assistant"),
            "turn 2 is 'user' after 'user'",
        ),
        ("messages", turns("assistant"), "turn 1 is 'assistant' after the start"),
        ("messages", turns("user", "assistant", "system"), "turn 3 is 'system'"),
        ("messages", turns("user", "assistant", "user"), "the last turn is 'user'"),
        ("messages", turns("user", "asistant"), "did you mean 'assistant'"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "content parts have to be text",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "humna", "value": "x"}]},
            "did you mean 'human'",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "content": "x"}]},
            "column 'value' is missing; the record has from, content",
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "x"},
                    {"from": "gpt", "value": "x"},
                ],
                "tools": "{oops",
            },
            "column 'tools' is not valid JSON",
        ),
    ],
)
def test_refused_with_its_row(format, record, message):
    with pytest.raises(InputError, match=message) as caught:
        read(format, record)
    assert str(caught.value).startswith("d.json (row 1): ")


def test_several_bad_rows_are_reported_together():
    rows = [Row({"text": value}, f"row {i}") for i, value in enumerate(["a", 1, 2])]
    with pytest.raises(InputError) as caught:
        parse(rows, "text")
    assert [p.split(":")[0] for p in caught.value.problems] == ["row 1", "row 2"]


def test_unknown_format_and_field_suggest():
    with pytest.raises(InputError, match="did you mean 'alpaca'"):
        parse([], "alpacca")
    with pytest.raises(InputError, match="no field 'promt'; did you mean 'prompt'"):
        parse([], "prompt_completion", {"promt": "question"})
    with pytest.raises(InputError, match="column 'sys' is missing"):
        read("alpaca", {"instruction": "i", "output": "o"}, {"system": "sys"})


def test_a_named_column_may_be_null_in_a_row_unless_it_is_required():
    row = {"instruction": "i", "output": "o", "context": None}
    assert read("alpaca", row, {"input": "context"})[0] == ("user", "i")
    with pytest.raises(InputError, match="column 'context' is null"):
        read("alpaca", row, {"output": "context"})


def test_fields_of_null_switch_a_column_off():
    row = {"instruction": "i", "output": "o", "input": "x", "system": "s"}
    parsed = read("alpaca", row, {"input": None, "system": None})
    assert parsed == [("user", "i"), ("assistant", "o")]
    with pytest.raises(InputError, match="output is null, but the format needs it"):
        read("alpaca", row, {"output": None})

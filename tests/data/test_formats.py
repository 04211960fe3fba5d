"""Every format against hand-written conversations, and what each refuses."""

import json

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


CALL = {"name": "f", "arguments": {"x": "é"}}


def calls(message):
    """The calls that a message of OpenAI's format is read with."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", **message}]
    (talk,) = parse([Row({"messages": turns}, "r")], "messages")
    assert isinstance(talk, Conversation)
    assert "function_call" not in talk.messages[1]
    return talk.messages[1].get("tool_calls")


def test_calls_in_every_form():
    text = {**CALL, "arguments": '{"x": "é"}'}
    modern = [{"id": "1", "function": CALL}]
    assert calls({"content": None, "tool_calls": modern}) == modern
    assert calls({"tool_calls": [{"id": "1", "function": text}]}) == modern
    assert calls({"tool_calls": json.dumps(modern)}) == modern
    legacy = calls({"content": None, "function_call": text})
    assert [call["function"] for call in legacy] == [CALL]
    assert calls({"function_call": {"name": "f", "arguments": ""}})[0]["function"] == {
        "name": "f",
        "arguments": {},
    }


@pytest.mark.parametrize("empty", [[], None, "", "[]"])
def test_an_empty_list_of_calls_is_no_call(empty):
    assert calls({"content": "b", "tool_calls": empty}) is None
    called = None if empty else {}
    assert calls({"content": "b", "function_call": called}) is None


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"tool_calls": "{oops"}, "not valid JSON"),
        ({"tool_calls": {"name": "f"}}, "tool_calls has to be a list; it is dict"),
        ({"tool_calls": [{"name": "f"}]}, "tool_calls need a function with a name"),
        ({"function_call": "f"}, "a function call needs a name; found 'f'"),
        (
            {"function_call": {"name": "f", "arguments": "{'x': 1}"}},
            "arguments of the call to 'f' are not valid JSON",
        ),
        (
            {"function_call": {"name": "f", "arguments": '{"x": 1, "x": 2}'}},
            "the key 'x' stands twice in one object",
        ),
        (
            {"function_call": {"name": "f", "arguments": '{"x": "\\ud83d"}'}},
            "half of a surrogate pair",
        ),
        ({"content": None}, "'content' is null in this row; fill it"),
    ],
)
def test_calls_that_are_none_are_refused(message, complaint):
    with pytest.raises(InputError, match=f"turn 2 of 'messages': .*{complaint}"):
        calls(message)


def test_a_thought_before_a_call():
    value = '<think>hm</think>\n{"name": "f", "arguments": {}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    assert read("sharegpt", {"conversations": turns})[1] == ("assistant", value)


def weights(format, values):
    """What is left of the weights that the assistant's turns are given."""
    names = {"messages": ("role", "content"), "sharegpt": ("from", "value")}[format]
    turns = []
    for value in values:
        turns.append(dict(zip(names, ("user", "q"))))
        turns.append(dict(zip(names, ("assistant", "a"))) | {"weight": value})
    column = "messages" if format == "messages" else "conversations"
    (talk,) = parse([Row({column: turns}, "r")], format)
    assert isinstance(talk, Conversation)
    return [turn.get("weight") for turn in talk.messages[1::2]]


@pytest.mark.parametrize("format", ["messages", "sharegpt"])
def test_weights_are_honoured_or_refused(format):
    assert weights(format, [0, 1, None, 0.0, 1.0, False]) == [0, None, None, 0, None, 0]
    for value in ("", "0", "1", 0.5, -1, 2, [0]):
        with pytest.raises(InputError, match="turn 2 .* weight has to be the number 1"):
            weights(format, [value])


def test_a_system_column_beside_turns():
    talk = [("system", "s"), ("user", "q"), ("assistant", "a")]
    said = [{"role": role, "content": content} for role, content in talk]
    assert read("messages", {"system": "s", "messages": said[1:]}) == talk
    assert read("messages", {"system": None, "messages": said}) == talk
    assert read("messages", {"system": "s", "messages": said}) == talk
    turns = {"system": "other", "messages": said}
    assert read("messages", turns, {"system": None}) == talk
    assert read("messages", {"sys": "s", "messages": said[1:]}, {"system": "sys"}) == (
        talk
    )


def test_lists_may_be_json_text_as_csv_has_them():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read("messages", {"messages": json.dumps(turns)})[1] == ("assistant", "a")
    record = {"instruction": "i", "output": "o", "history": '[["q", "a"]]'}
    assert read("alpaca", record)[:2] == [("user", "q"), ("assistant", "a")]
    for empty in ("", "  ", None, []):
        assert len(read("alpaca", record | {"history": empty})) == 2


def test_prompt_and_completion_as_messages():
    """As TRL has them: of all answers, those of the completion are learned."""
    prompt = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")]
    record = {
        "prompt": [{"role": role, "content": text} for role, text in prompt],
        "completion": [{"role": "assistant", "content": "b"}],
        "tools": [{"name": "f", "parameters": {}}],
    }
    (talk,) = parse([Row(record, "r")], "prompt_completion")
    assert isinstance(talk, Conversation) and talk.tools
    assert [(m["role"], m["content"]) for m in talk.messages] == [
        *prompt,
        ("assistant", "b"),
    ]
    assert [m.get("weight") for m in talk.messages] == [None, None, 0, None, None]


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
        (
            "alpaca",
            {"instruction": "i", "output": None},
            "'output' is null in this row; fill it or delete the row$",
        ),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "history": "[['q', 'a']]"},
            "'history' has to be a list; its text .* is not valid JSON .* json.dumps",
        ),
        (
            "alpaca",
            {"instruction": "i", "output": "o", "system": 5},
            "'system' has to be text; .* to leave it unread, fields: {system: null}",
        ),
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
        ("messages", turns("system", "user", "user"), "turn 3 is 'user' after 'user'"),
        (
            "messages",
            {**turns("user", "user"), "system": "s"},
            "turn 2 is 'user' after 'user'",
        ),
        (
            "messages",
            {**turns("system", "user", "assistant"), "system": "s"},
            r"both hold one, and they differ.* fields: \{system: null\}",
        ),
        (
            "messages",
            {"messages": [*turns("user")["messages"], {"role": "assistant"}]},
            "turn 2 of 'messages': column 'content' is missing",
        ),
        ("messages", {"messages": "[1]"}, "turn 1 of 'messages' has to be an object"),
        ("messages", {"messages": '{"role": "user"}'}, "a list, or the JSON text of"),
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
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "time?"},
                    {"from": "function_call", "value": "{'name': 'get_time'}"},
                ]
            },
            "turn 2 of 'conversations': the function call .* is not valid JSON",
        ),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": "time?"},
                    {"from": "function_call", "value": '{"city": "Oslo"}'},
                ]
            },
            "turn 2 of 'conversations': a function call needs a name",
        ),
        (
            "prompt_completion",
            {"prompt": [{"role": "user", "content": "q"}], "completion": "a"},
            "'completion' has to be a list",
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
    *problems, total = caught.value.problems
    assert [p.split(":")[0] for p in problems] == ["row 1", "row 2"]
    assert total.startswith("data: 2 of 3 rows cannot be used; correct them, or leave")


def test_all_bad_rows_are_counted_and_few_are_shown():
    rows = [Row({"text": n}, f"row {n}") for n in range(1000)]
    with pytest.raises(InputError) as caught:
        parse([*rows, Row({"text": "fine"}, "r")], "text")
    assert len(caught.value.problems) == 6
    assert "data: 1,000 of 1,001 rows cannot be used; the first" in str(caught.value)
    with pytest.raises(InputError, match="data: none of the 1,000 rows can be used"):
        parse(rows, "text")


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

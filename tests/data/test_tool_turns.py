"""Function calls and their answers, by templates that know them and that do not."""

import json

import pytest

from jaxpeft.data.formats import Conversation, parse
from jaxpeft.data.sources import Row

from .conftest import learned, one, talk

LLAMA2 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

TOOL_TALK = [
    {"role": "user", "content": "Area?"},
    {
        "role": "assistant",
        "content": '{"name": "area", "arguments": {"r": 2}}',
        "function_call": True,
    },
    {"role": "tool", "content": "12.6"},
    {"role": "assistant", "content": "It is 12.6."},
]
TOOLS = [{"type": "function", "function": {"name": "area", "parameters": {}}}]


def test_tool_calls_with_a_template_that_knows_none(tokenizer):
    example = one(Conversation(TOOL_TALK, TOOLS), tokenizer)
    text = tokenizer.decode(example.tokens)
    assert text.startswith("<|bos|><|im_start|>system\nYou may call these functions:")
    assert "<|im_start|>tool\n12.6<|im_end|>" in text
    assert learned(Conversation(TOOL_TALK, TOOLS), tokenizer) == [
        '{"name": "area", "arguments": {"r": 2}}<|im_end|>',
        "It is 12.6.<|im_end|>",
    ]


def test_tool_answers_are_the_users_where_the_template_refuses_a_tool(tokenizer_with):
    tokenizer = tokenizer_with(LLAMA2)
    text = tokenizer.decode(one(Conversation(TOOL_TALK), tokenizer).tokens)
    assert "[INST] 12.6 [/INST]" in text


def test_tool_calls_with_a_template_that_has_them(tokenizer_with):
    template = (
        "{% if tools %}{{ 'tools ' + tools | tojson + '\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ '<call>' + c.function.name "
        "+ c.function.arguments | tojson }}{% endfor %}{% else %}{{ m['content'] }}"
        "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = tokenizer_with(template)
    conversation = Conversation(TOOL_TALK, TOOLS)
    assert learned(conversation, tokenizer) == [
        '<call>area{"r": 2}<|im_end|>',
        "It is 12.6.<|im_end|>",
    ]
    text = tokenizer.decode(one(conversation, tokenizer).tokens)
    assert text.startswith('tools [{"type": "function"')


def test_tool_calls_where_the_template_rewrites_earlier_turns(tokenizer_with):
    """As Mistral's: tools stand in the last user turn, and calls need ids."""
    template = (
        "{{ bos_token }}{% set users = messages "
        "| selectattr('role', 'equalto', 'user') | list %}"
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{% if m == users[-1] and tools %}{{ '[TOOLS]' + tools | tojson }}{% endif %}"
        "{{ '[INST]' + m.content + '[/INST]' }}"
        "{% elif m.tool_calls %}{% set call = m.tool_calls[0] %}"
        "{% if call.id | length < 9 %}{{ raise_exception('short id') }}{% endif %}"
        "{{ '[CALLS]' + call.function | tojson + eos_token }}"
        "{% elif m.role == 'tool' %}{% if m.tool_call_id | length < 9 %}"
        "{{ raise_exception('short id') }}{% endif %}{{ '[RESULT]' + m.content }}"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    turns = [*TOOL_TALK, *talk("Thanks", "Welcome").messages]
    assert learned(Conversation(turns, TOOLS), tokenizer_with(template)) == [
        '[CALLS]{"name": "area", "arguments": {"r": 2}}<|im_end|>',
        "It is 12.6.<|im_end|>",
        "Welcome<|im_end|>",
    ]


def items(format, record):
    return parse([Row(record, "d.json (row 1)")], format)


NAME, ARGUMENTS = "get_time", {"city": "Oslo"}
QUESTION = {"role": "user", "content": "time in Oslo?"}
CALL = {
    "function": {"name": NAME, "arguments": json.dumps(ARGUMENTS)},
    "id": "c00000001",
}
TEXT = '{"name": "get_time", "arguments": {"city": "Oslo"}}'


def after(*turns):
    """Messages that ask, and then these."""
    return items("messages", {"messages": [QUESTION, *turns]})[0]


def test_calls_that_the_template_does_not_know_are_learned_as_text(tokenizer):
    """The same talk in both formats, and in OpenAI's older form, gives the same."""
    rest = (
        {"role": "tool", "tool_call_id": CALL["id"], "content": "12:00"},
        {"role": "assistant", "content": "noon"},
    )
    modern = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    legacy = {"role": "assistant", "content": "", "function_call": CALL["function"]}
    (sharegpt,) = items(
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": QUESTION["content"]},
                {"from": "function_call", "value": TEXT},
                {"from": "observation", "value": "12:00"},
                {"from": "gpt", "value": "noon"},
            ]
        },
    )
    expected = one(sharegpt, tokenizer).tokens.tolist()
    for call in (modern, legacy):
        assert learned(after(call, *rest), tokenizer) == [
            TEXT + "<|im_end|>",
            "noon<|im_end|>",
        ]
        assert one(after(call, *rest), tokenizer).tokens.tolist() == expected
    answer = {"role": "function", "name": NAME, "content": "12:00"}
    talked = after(legacy, answer, rest[1])
    assert one(talked, tokenizer).tokens.tolist() == expected


def test_text_beside_a_call_and_several_calls_are_kept(tokenizer):
    said = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]}
    assert learned(after(said), tokenizer) == [
        f"Let me see.\n[{TEXT}, {TEXT}]<|im_end|>"
    ]
    unlearned = after(
        said | {"weight": 0},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "b"},
    )
    assert learned(unlearned, tokenizer) == ["b<|im_end|>"]


LLAMA32 = (
    "{{ bos_token }}{% for m in messages %}{% if 'tool_calls' in m %}"
    "{% if not m.tool_calls | length == 1 %}"
    '{{ raise_exception("only single tool-calls at once") }}{% endif %}'
    "{% else %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MISTRAL = (
    '{{ bos_token }}{% for m in messages %}{% if m.role == "user" %}'
    '{{ "[INST]" + m.content + "[/INST]" }}'
    "{% elif m.tool_calls is defined and m.tool_calls is not none %}"
    '{{ "[TOOL_CALLS][" }}{% for c in m.tool_calls %}{{ c.function | tojson }}'
    '{% if not loop.last %}{{ ", " }}{% else %}{{ "]" + eos_token }}{% endif %}'
    '{% endfor %}{% elif m.role == "assistant" %}{{ m.content + eos_token }}{% endif %}'
    "{% endfor %}"
)


@pytest.mark.parametrize("template", [LLAMA32, MISTRAL])
@pytest.mark.parametrize("empty", [[], None, ""])
def test_an_empty_list_of_calls_changes_nothing(tokenizer_with, template, empty):
    tokenizer = tokenizer_with(template)
    plain = {"role": "assistant", "content": "b"}
    assert learned(after(plain | {"tool_calls": empty}), tokenizer) == ["b<|im_end|>"]
    used = [
        one(after(message), tokenizer).tokens.tolist()
        for message in (plain, plain | {"tool_calls": empty})
    ]
    assert used[0] == used[1]


def test_a_thought_before_a_call_stays_with_it(tokenizer_with):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "<think>hm</think>\n" + TEXT},
    ]
    (item,) = items("sharegpt", {"conversations": turns})
    assert learned(item, tokenizer_with(template)) == [
        "<think>hm</think><call>get_time<|im_end|>"
    ]

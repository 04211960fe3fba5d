"""Tokens and masks, against the tokenizer's own rendering and hand-written spans."""

import numpy as np
import pytest

from jaxpeft.data.render import render
from jaxpeft.errors import InputError

from .conftest import learned, one, talk

# Chat templates in the styles of well-known models.

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] "
    "+ '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system = none %}{% endif %}"
    "{% for m in loop_messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system is not none %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# The system prompt stands in the last user turn, so what was rendered up to an earlier
# turn is no prefix.
MISTRAL = (
    "{{ bos_token }}{% set n = namespace(last=0) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set n.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% if loop.index0 == n.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)

# Thoughts of earlier turns are left out.
QWEN3 = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The generation prompt opens a thought that the rendered conversation does not hold.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|User|>' + m['content'] }}{% else %}"
    "{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)

PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)

GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}"
)

LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>")
R1_TOKENS = ("<|User|>", "<|Assistant|>")


FOUR = ("Hi there", "Hello! 🙂", "And\nnow?", "Bye bye.")


@pytest.mark.parametrize(
    ("template", "special", "expected"),
    [
        (CHATML, (), ["Hello! 🙂<|im_end|>", "Bye bye.<|im_end|>"]),
        (LLAMA3, LLAMA3_TOKENS, ["Hello! 🙂<|eot_id|>", "Bye bye.<|eot_id|>"]),
        (LLAMA2, (), [" Hello! 🙂 <|im_end|>", " Bye bye. <|im_end|>"]),
        (GEMMA, GEMMA_TOKENS, ["Hello! 🙂<end_of_turn>", "Bye bye.<end_of_turn>"]),
        (MISTRAL, (), [" Hello! 🙂<|im_end|>", " Bye bye.<|im_end|>"]),
        (QWEN3, (), ["Hello! 🙂<|im_end|>", "Bye bye.<|im_end|>"]),
        (R1, R1_TOKENS, ["Hello! 🙂<|im_end|>", "Bye bye.<|im_end|>"]),
        (GENERATION, (), ["Hello! 🙂<|im_end|>", "Bye bye.<|im_end|>"]),
        # no token ends a turn here, the line break does; and the prompt's last space
        # is one token with the first letter
        (PLAIN, (), [" Hello! 🙂\n", " Bye bye.\n"]),
    ],
    ids=[
        "chatml",
        "llama3",
        "llama2",
        "gemma",
        "mistral",
        "qwen3",
        "r1",
        "tag",
        "plain",
    ],
)
def test_assistant_turns_are_learned_with_their_end(
    tokenizer_with, template, special, expected
):
    tokenizer = tokenizer_with(template, *special)
    conversation = talk(*FOUR)
    assert learned(conversation, tokenizer) == expected
    ids = tokenizer.apply_chat_template(conversation.messages)["input_ids"]
    np.testing.assert_array_equal(one(conversation, tokenizer).tokens, ids)


@pytest.mark.parametrize(
    ("template", "special"),
    [(CHATML, ()), (LLAMA3, LLAMA3_TOKENS), (LLAMA2, ()), (MISTRAL, ())],
)
def test_a_system_prompt_is_never_learned(tokenizer_with, template, special):
    tokenizer = tokenizer_with(template, *special)
    texts = learned(talk(*FOUR, system="Hello! is what you say"), tokenizer)
    assert [text.split("<|")[0].strip() for text in texts] == ["Hello! 🙂", "Bye bye."]


def test_generation_prompt_plus_learned_tokens_are_the_conversation(tokenizer):
    """What is learned is what generation continues with."""
    conversation = talk("Hi there", "Hello!")
    tokens, supervised, *_ = one(conversation, tokenizer)
    prompt = tokenizer.apply_chat_template(
        conversation.messages[:1], add_generation_prompt=True
    )["input_ids"]
    assert not supervised[: len(prompt)].any()
    assert list(tokens[: len(prompt)]) == prompt
    assert tokenizer.decode(tokens[supervised]) == "Hello!<|im_end|>"
    assert tokenizer.decode(tokens[len(prompt) :]) == "Hello!<|im_end|>\n"


def test_earlier_thoughts_that_the_template_drops(tokenizer_with):
    tokenizer = tokenizer_with(QWEN3)
    contents = ("q", "<think>\nhm\n</think>\n\nyes", "yes", "<think>\nx</think>no")
    assert learned(talk(*contents), tokenizer) == [
        "yes<|im_end|>",
        "<think>\nx</think>no<|im_end|>",
    ]


def test_a_prompt_that_opens_a_thought(tokenizer_with):
    tokenizer = tokenizer_with(R1, *R1_TOKENS)
    contents = ("q", "<thanks>", "again", "<think>hm</think>done")
    assert learned(talk(*contents), tokenizer) == [
        "<thanks><|im_end|>",
        "done<|im_end|>",
    ]


@pytest.mark.slow
def test_repeated_and_tiny_contents_do_not_confuse(tokenizer_with):
    for template, special in [(MISTRAL, ()), (LLAMA3, LLAMA3_TOKENS), (CHATML, ())]:
        tokenizer = tokenizer_with(template, *special)
        texts = learned(talk("a", "a", "assistant", "s", system="a"), tokenizer)
        assert [text.split("<|")[0].strip() for text in texts] == ["a", "s"]


def test_an_empty_answer_still_learns_to_stop(tokenizer):
    assert learned(talk("q", ""), tokenizer) == ["<|im_end|>"]


def test_end_of_turn_is_learned_when_it_is_the_pad_token(tokenizer_with):
    tokenizer = tokenizer_with(CHATML)
    tokenizer.pad_token = tokenizer.eos_token
    assert learned(talk("q", "a"), tokenizer) == ["a<|im_end|>"]


def test_messages_of_weight_zero_are_not_learned(tokenizer):
    conversation = talk(*FOUR)
    conversation.messages[1]["weight"] = 0
    assert learned(conversation, tokenizer) == ["Bye bye.<|im_end|>"]


def test_train_on_all_counts_everything_but_the_first_token(tokenizer):
    example = one(talk("q", "a"), tokenizer, train_on="all")
    assert not example.supervised[0]
    assert example.supervised[1:].all()


def test_cutting(tokenizer):
    whole = one(talk("q", "long answer"), tokenizer)
    size = len(whole.tokens)
    assert not whole.truncated
    cut = one(talk("q", "long answer"), tokenizer, max_length=size - 2)
    assert cut.left_out == 2 and cut.truncated
    np.testing.assert_array_equal(cut.tokens, whole.tokens[: size - 2])
    np.testing.assert_array_equal(cut.supervised, whole.supervised[: size - 2])
    assert not one(talk("q", "a"), tokenizer, max_length=4).supervised.any()
    assert not one(talk("q", "long answer"), tokenizer, max_length=size).truncated


def test_documents_have_bos_and_eos(tokenizer):
    example = one("Some text", tokenizer)
    assert tokenizer.decode(example.tokens) == "<|bos|>Some text<|im_end|>"
    assert example.supervised.tolist() == [False] + [True] * (len(example.tokens) - 1)
    assert one("Some text", tokenizer, max_length=2).truncated


def test_documents_split_without_loss(tokenizer):
    text = "All work and no play. " * 20
    whole = one(text, tokenizer)
    pieces = render([text], ["r"], tokenizer, max_length=16, split=True)
    assert all(len(p.tokens) <= 16 and not p.truncated for p in pieces)
    np.testing.assert_array_equal(
        np.concatenate([p.tokens for p in pieces]), whole.tokens
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; put the chat_template.jinja"),
        ("{% for %}", "the chat template cannot be used: it is not valid Jinja"),
        ("{{ 'a' * 10000000000 }}", "the chat template cannot be used: it was stopped"),
        (
            "{{ raise_exception('no jokes') }}",
            r"d\.json \(row 1\): the chat template of .* refuses .*: no jokes",
        ),
        ("{{ messages[0].content + 1 }}", "refuses this conversation: can only concat"),
        (
            "{{ messages[0].__class__.__mro__ }}",
            "refuses this conversation: access to attribute '__class__'",
        ),
        # neither prefixes nor contents: nothing tells where the answer is
        (
            "{% for m in messages %}{{ loop.length ~ m.content | upper }}{% endfor %}",
            "cannot tell the assistant's turns apart",
        ),
    ],
)
def test_templates_that_cannot_be_used(tokenizer_with, template, message):
    with pytest.raises(InputError, match=message):
        one(talk("q", "a"), tokenizer_with(template))


def test_a_later_row_that_the_template_refuses_is_named(tokenizer_with):
    tokenizer = tokenizer_with(GEMMA, *GEMMA_TOKENS)
    items = [talk("long question", "a"), talk("q", "b", system="s"), talk("q", "c")]
    items[0].messages[0]["content"] *= 100
    with pytest.raises(InputError, match=r"^row 1: .*System role not supported"):
        render(items, ["row 0", "row 1", "row 2"], tokenizer, max_length=64)

"""Which tokens are learned: answers that are easily confused, blocks that mark them."""

import pytest
from tokenizers import AddedToken

from jaxpeft.data import turns
from jaxpeft.data.fixed_date import DATE, with_fixed_date
from jaxpeft.data.formats import Conversation
from jaxpeft.data.render import render
from jaxpeft.data.template import ChatTemplate
from jaxpeft.errors import InputError

from .conftest import learned, learned_each, load_tokenizer, one, talk

USER = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
HEADER = "{{ '<|im_start|>assistant\n' }}"
END = "{{ '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"
CONTENT = "{{ m['content'] }}"


def chatml(assistant):
    """A ChatML template whose assistant's turns are written so."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        f"{assistant}{{% else %}}{USER}{{% endif %}}{{% endfor %}}{PROMPT}"
    )


BLOCKS = {
    "content": HEADER + OPEN + CONTENT + CLOSE + END,
    "through the end": HEADER
    + OPEN
    + CONTENT
    + "{{ '<|im_end|>' }}"
    + CLOSE
    + "{{ '\n' }}",
    "with the line break": HEADER + OPEN + CONTENT + END + CLOSE,
    "with the header": OPEN + HEADER + CONTENT + END + CLOSE,
    "none": HEADER + CONTENT + END,
}
ANSWERS = [
    "hello",
    "",
    "x  ",
    "🙂",
    "two\nlines\n",
    "Put <file_sep> between files, then go on.",
    "It ends with <file_sep>",
    "It is <|im_end|> in ChatML, so stop there.",
    "<|im_end|>",
    "<file_sep> first",
    "im_end",
    "assistant",
]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_an_answer_is_learned_to_the_end_of_turn(tokenizer_with, block):
    """Whatever of a turn a block marks."""
    tokenizer = tokenizer_with(chatml(BLOCKS[block]), "<file_sep>")
    pairs = list(zip(ANSWERS, ANSWERS[1:] + ANSWERS[:1]))
    found = learned_each([talk("q", a, "q", b) for a, b in pairs], tokenizer)
    assert found == [[a + "<|im_end|>", b + "<|im_end|>"] for a, b in pairs]


@pytest.mark.slow
def test_a_block_marks_which_turns_are_learned(tokenizer_with):
    last = (
        "{% if loop.last %}" + BLOCKS["content"] + "{% else %}" + USER + "{% endif %}"
    )
    tokenizer = tokenizer_with(chatml(last))
    assert learned(talk("q", "a", "q", "b"), tokenizer) == ["b<|im_end|>"]
    never = "{% if false %}" + BLOCKS["content"] + "{% endif %}" + USER
    assert learned(talk("q", "a"), tokenizer_with(chatml(never))) == ["a<|im_end|>"]
    unlearned = talk("q", "a", "q", "b")
    unlearned.messages[1]["weight"] = 0
    tokenizer = tokenizer_with(chatml(BLOCKS["with the header"]))
    assert learned(unlearned, tokenizer) == ["b<|im_end|>"]


def test_several_blocks_and_blocks_over_a_part(tokenizer_with):
    more = "{{ 'unlearned:' }}" + OPEN + "{{ 'more' }}" + CLOSE
    two = chatml(HEADER + OPEN + CONTENT + CLOSE + more + END)
    assert learned(talk("q", "a"), tokenizer_with(two)) == ["a", "more<|im_end|>"]
    half = OPEN + "{{ m['content'][:2] }}" + CLOSE + "{{ m['content'][2:] }}"
    tokenizer = tokenizer_with(chatml(HEADER + half + END))
    assert learned(talk("q", "12 34"), tokenizer) == ["12"]


def test_blocks_hold_where_the_template_leaves_the_last_turn_open(tokenizer_with):
    """As Qwen1.5's does: the second answer alone is marked, and is ended."""
    end = "{% if not loop.last or add_generation_prompt %}" + END + "{% endif %}"
    marked = "{% if loop.index > 2 %}" + OPEN + CONTENT + CLOSE + "{% else %}"
    turns = HEADER + marked + CONTENT + "{% endif %}" + end
    asked = "{{ '<|im_start|>user\n' + m['content'] }}" + end
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        f"{turns}{{% else %}}{asked}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt and messages[-1].role != 'assistant' %}"
        f"{HEADER}{{% endif %}}"
    )
    talks = talk("q", "a", "q", "b")
    assert learned(talks, tokenizer_with(template)) == ["b<|im_end|>"]


def call_of(name):
    return {"id": "0", "type": "function", "function": {"name": name, "arguments": {}}}


@pytest.mark.slow
@pytest.mark.parametrize("through_end", [True, False])
def test_a_block_around_a_call(tokenizer_with, through_end):
    """The content is not known, and a special token ends the call before the turn."""
    written = "{{ '<call>' + m.tool_calls[0].function.name + '</call>' }}"
    rest = END + CLOSE if through_end else CLOSE + END
    template = chatml(HEADER + OPEN + written + rest)
    turns = talk("q", "").messages
    turns[1]["tool_calls"] = [call_of("f")]
    tokenizer = tokenizer_with(template, "<call>", "</call>")
    assert learned(Conversation(turns), tokenizer) == ["<call>f</call><|im_end|>"]


def test_blocks_say_enough_where_turns_cannot_be_found(tokenizer_with):
    """A template that rewrites all that came earlier."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        "{{ '<|im_start|>' ~ loop.length }}{% generation %}{{ m['content'] | upper }}"
        "{% endgeneration %}{{ '<|im_end|>' }}{% else %}{{ m['content'] | upper }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = tokenizer_with(template, "<FILE_SEP>")
    items = talk("q", "a", "q", "b <file_sep> c", "q", "d <file_sep>")
    assert learned(items, tokenizer) == [
        "A<|im_end|>",
        "B <FILE_SEP> C<|im_end|>",
        "D <FILE_SEP>",  # nothing tells whether more belongs to it
    ]


FINAL = "<|channel|>final<|message|>"
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}"
    "{{ 'LAST' if loop.last else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}"
    "{% endif %}"
)
HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")


@pytest.mark.parametrize("last", ["<|end|>", "<|return|>"])
def test_an_answer_that_the_templates_own_text_holds(tokenizer_with, last):
    """It is looked for after that text; a special token inside it does not end it.

    With another token at the end of the last turn, earlier ones have no exact end.
    """
    tokenizer = tokenizer_with(HARMONY.replace("LAST", last), *HARMONY_TOKENS)
    answers = [
        "a",
        "final",
        "",
        " ",
        "channel",
        "end",
        "l",
        "<|end|>",
        "say <|end|> so",
    ]
    found = learned_each([talk("which?", a, "and a?", a) for a in answers], tokenizer)
    assert found == [[FINAL + a + "<|end|>", FINAL + a + last] for a in answers]


QWEN3_THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content %}"
    "{% set t = m.reasoning_content or '' %}{% if '</think>' in c %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last %}"
    "{{ '<think>\n' + t + '\n</think>\n\n' }}{% endif %}{{ c + '<|im_end|>\n' }}"
    "{% else %}" + USER + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


@pytest.mark.slow
def test_thoughts_in_several_turns(tokenizer_with):
    """In the text or apart from it; the template keeps those of the last turn alone."""
    tokenizer = tokenizer_with(QWEN3_THINKING)
    thought = "<think>\n{}\n</think>\n\n"
    inline = talk("q1", thought.format("t1") + "a1", "q2", thought.format("a2?") + "a2")
    apart = talk("q1", "a1", "q2", "a2")
    apart.messages[1]["reasoning_content"] = "t1"
    apart.messages[3]["reasoning_content"] = "a2?"
    expected = ["a1<|im_end|>", "a2?\n</think>\n\na2<|im_end|>"]
    assert learned(inline, tokenizer) == learned(apart, tokenizer) == expected
    for first in ("<think>a</think>", "<think>\n\n</think>\n\n", ""):
        items = talk("q1", first + "a1", "q2", first + "a2")
        assert learned(items, tokenizer)[0] == "a1<|im_end|>"


def test_a_call_that_is_written_only_without_text_is_refused(tokenizer_with):
    template = chatml(
        HEADER + "{% if m.content %}{{ m.content }}{% elif m.tool_calls %}"
        "{{ m.tool_calls[0].function.name }}{% endif %}" + END
    )
    turns = talk("q", "").messages
    turns[1]["tool_calls"] = [call_of("get_time")]
    tokenizer = tokenizer_with(template)
    assert learned(Conversation(turns), tokenizer) == ["get_time<|im_end|>"]
    turns[1]["content"] = "Let me see."
    with pytest.raises(InputError, match=r"d\.json \(row 1\): .* call to 'get_time'"):
        one(Conversation(turns), tokenizer)


DATED = (
    "{{ bos_token }}{{ '<|im_start|>system\n' }}"
    "{%- set today = strftime_now('%d %B %Y') -%}"
    "{{ 'Today: ' ~ today ~ '<|im_end|>\n' }}" + chatml(BLOCKS["content"])
)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(tokenizer_with):
    tokenizer = tokenizer_with(DATED)
    text = tokenizer.decode(one(talk("q", "a"), tokenizer).tokens)
    assert "Today: 26 July 2024<|im_end|>" in text
    assert learned(talk("q", "a"), tokenizer) == ["a<|im_end|>"]


def written_by(template):
    """What transformers makes of a template."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template).render()


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%-d.%-m.%y, %A", "%H:%M", "%B %-d", "%x %X", "100%", ""]
)
def test_dates_are_written_as_python_writes_them(form):
    """In a macro and behind a condition, as templates do."""
    template = (
        "{% macro day() %}{{ strftime_now(FORM) }}{% endmacro %}"
        "{% if strftime_now is defined %}{{ day() }}{% endif %}"
    ).replace("FORM", repr(form))
    assert written_by(with_fixed_date(template)) == DATE.strftime(form)


@pytest.mark.parametrize(
    "start", ["x", "\n x", "  {% if true %}y{% endif %}", "{{ 1 }}", "{#- -#}\n\n"]
)
def test_the_rest_of_a_dated_template_is_as_before(start):
    plain = start + "\n  {% if true %}\n z {% endif %}"
    assert with_fixed_date(plain) is plain
    dated = with_fixed_date(plain + "{{ strftime_now('') }}")
    assert written_by(dated) == written_by(plain)


def test_a_text_that_begins_with_bos_gets_no_second_one(tokenizer):
    text = "<|im_start|>user\nhi<|im_end|>"
    (bare, with_bos) = (
        render([one], ["r"], tokenizer, max_length=99)[0].tokens.tolist()
        for one in (text, "<|bos|>" + text)
    )
    assert with_bos == bare
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert bare.count(bos) == 1 and bare[-1] == eos and bare[-2] != eos


STRIPPED = (
    "{% for m in messages %}{{ '<|say|>' if m.role == 'assistant' else '<|ask|>' }}"
    "{{ '\n' + m['content'] + '<|over|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|say|>\n' }}{% endif %}"
)
SIDES = {
    "none": ({}, {}),
    "the header's right": ({"rstrip": True}, {}),  # as those of Phi-3
    "the end's left": ({}, {"lstrip": True}),
    "the end's right": ({}, {"rstrip": True}),
    "all": ({"lstrip": True, "rstrip": True},) * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("sides", SIDES)
def test_special_tokens_that_take_white_space_with_them(sides):
    """What they take is theirs: the rest of an answer and its end are learned."""
    tokenizer = load_tokenizer()
    header, end = SIDES[sides]
    tokenizer.add_tokens(
        [
            AddedToken("<|ask|>", **header),
            AddedToken("<|say|>", **header),
            AddedToken("<|over|>", **end),
        ],
        special_tokens=True,
    )
    tokenizer.chat_template = STRIPPED
    answers = [
        "hello",
        "two\n\nlines\n",
        "ends in spaces  ",
        "tab\t",
        "",
        "a <|say|> b",
    ]
    if header:  # else the line break before them may be one token with theirs
        answers += ["  indented", "\n\n", " \n both \n "]
    for answer in answers:
        text = "<|ask|>\n q <|over|>\n<|say|>\n" + answer + "<|over|>\n"
        begin = text.index("<|say|>\n") + len("<|say|>\n")
        stop = begin + len(answer) + len("<|over|>")
        whole = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, spans = whole["input_ids"], whole["offset_mapping"]
        over = tokenizer.convert_tokens_to_ids("<|over|>")
        last = max(i for i, token in enumerate(ids) if token == over)
        wanted = [begin <= at < stop or i == last for i, (at, _) in enumerate(spans)]
        example = one(talk(" q ", answer), tokenizer)
        assert list(example.tokens) == ids
        assert list(example.supervised) == wanted
        first = wanted.index(True)
        if spans[first][0] >= begin:  # what is not learned is what it is asked with
            prompt = tokenizer(text[:begin], add_special_tokens=False)
            assert ids[:first] == prompt["input_ids"]


THINKS = (
    "{% for m in messages %}{% set c = m['content'] %}"
    "{% if '</think>' in c and not loop.last %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + c + '<|im_end|>\n' }}{% endfor %}" + PROMPT
)
NUMBERED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if loop.index0 == 10 %}{{ ' of many' }}{% endif %}"
    "{{ '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}" + PROMPT
)


@pytest.mark.parametrize(
    "template", [chatml(BLOCKS["none"]), STRIPPED, THINKS, NUMBERED]
)
def test_many_turns_are_found_as_few_are(tokenizer_with, monkeypatch, template):
    """By rendering a few beginnings in place of all of them."""
    tokenizer = tokenizer_with(template, "<file_sep>")
    said = [a for n, answer in enumerate(ANSWERS) for a in (f"question {n}", answer)]
    long = talk(
        *said, *(a for n in range(9) for a in (f"q{n}", f"<think>t</think>\na{n}"))
    )
    long.messages[7]["weight"] = 0
    found = []
    for many in (4, 10**9):
        monkeypatch.setattr(turns, "MANY", many)
        found.append(one(long, tokenizer))
    assert found[0].tokens.tolist() == found[1].tokens.tolist()
    assert found[0].supervised.tolist() == found[1].supervised.tolist()
    assert found[0].supervised.any()


def test_a_long_conversation_takes_time_for_its_length_alone(tokenizer, monkeypatch):
    """400 turns are rendered a few times, not 400 times."""
    rendered = []
    render = ChatTemplate.render

    def counted(self, conversations, places, **settings):
        rendered.extend(len(c.messages) for c in conversations)
        return render(self, conversations, places, **settings)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    long = talk(*(f"text {n}" for n in range(800)))
    example = one(long, tokenizer, max_length=10**6)
    assert sum(rendered) < 16 * 800
    assert example.supervised.sum() > 400

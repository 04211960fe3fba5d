"""`chat`: the answers of `generate` to the whole conversation, from piped lines."""

import io
import itertools

import pytest

from jaxpeft.assembly import trained
from jaxpeft.data.formats import Conversation
from jaxpeft.generate.answering import Question, answers
from jaxpeft.generate.dialogue import Dialogue
from jaxpeft.models.sampling import Sampling


@pytest.fixture
def chat(command, monkeypatch, finished):
    """chat(text, *arguments): what the command makes of its standard input."""

    def run(text, *arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        shared = ["--run", str(finished), "--max-new-tokens", "12"]
        return command("chat", *shared, *arguments)

    return run


@pytest.fixture(scope="module")
def model(finished):
    return trained.load(str(finished), None, None, None)


@pytest.fixture
def dialogue(model):
    return Dialogue(model, system="Be brief.", max_new_tokens=12, sampling=Sampling())


def answered(model, messages):
    """What `generate` says to these messages."""
    question = Question(Conversation(messages), "here")
    settings = {"max_new_tokens": 12, "sampling": Sampling(), "batch_size": 1}
    (answer,) = answers(model, [question], **settings)
    return answer


def test_every_turn_answers_the_whole_conversation(model, dialogue):
    messages = [{"role": "system", "content": "Be brief."}]
    for number, text in enumerate(["Hello", "And snow in Hamburg?", "Grüße 🌧"]):
        messages.append({"role": "user", "content": text})
        answer = "".join(dialogue.say(text))
        assert answer == answered(model, messages)
        messages.append({"role": "assistant", "content": answer})
        assert dialogue.messages == messages
        assert (dialogue.reused > 10) == (number > 0)
    dialogue.reset()
    first = {"role": "user", "content": "Hello"}
    assert "".join(dialogue.say("Hello")) == answered(model, [messages[0], first])


def test_an_answer_that_a_stop_text_cuts_goes_into_the_conversation_so(model):
    whole = answered(model, [{"role": "user", "content": "Hello"}])
    stop = whole[len(whole) // 2 :][:3]
    settings = {"system": None, "max_new_tokens": 12, "sampling": Sampling()}
    dialogue = Dialogue(model, stop=[stop], **settings)
    answer = "".join(dialogue.say("Hello"))
    assert answer == whole.split(stop)[0]
    assert dialogue.messages[-1] == {"role": "assistant", "content": answer}


def test_an_answer_that_is_left_stays_as_far_as_it_went(model, dialogue):
    pieces = dialogue.say("Hello")
    begun = "".join(itertools.islice(pieces, 2))
    pieces.close()
    assert dialogue.messages[-1] == {"role": "assistant", "content": begun}
    talk = [*dialogue.messages, {"role": "user", "content": "Go on"}]
    assert "".join(dialogue.say("Go on")) == answered(model, talk)


def test_lines_are_answered_until_they_end(chat, model):
    first = answered(model, [{"role": "user", "content": "Hello"}])
    both = [("user", "Hello"), ("assistant", first), ("user", "Snow?")]
    second = answered(model, [{"role": role, "content": text} for role, text in both])
    done = chat("Hello\n\n  Snow?  \n")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{first}\n{second}\n"
    done = chat("Hello\n/reset\n/rest\nHello\n/exit\nHello\n")
    assert done.out == f"{first}\n" * 2
    assert "/rest: not a command; did you mean '/reset'" in done.err


def test_a_line_that_is_no_text_is_refused_and_the_chat_goes_on(
    command, monkeypatch, finished
):
    stdin = io.TextIOWrapper(io.BytesIO(b"\ncaf\xe9\nHello\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    done = command("chat", "--run", str(finished), "--max-new-tokens", "1")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert done.err == (
        "warning: standard input, line 2: found byte 0xe9, which is not UTF-8; "
        "send text in the encoding UTF-8\n"
    )


def test_a_conversation_without_room_can_begin_anew(chat):
    done = chat("Hello\n" + "rain " * 300 + "\nHello\n")
    assert done.code == 0 and len(done.out.splitlines()) == 2
    assert "exceed the model's context of 256" in done.err
    assert "/reset begins anew" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top-k", "-1"], "top-k: found -1; it must be 1 or more"),
        (["--system", "caf\udce9"], "--system: found byte 0xe9, which is not UTF-8"),
        (["--max-new-tokens", "0"], "max-new-tokens: found 0"),
        (["--adapter", "a"], "--adapter belongs to --model"),
        (["--model", "a"], "give one of --run DIR and --model PATH"),
        (["--model", "b", "--adapter", "a", "--adapter", "c"], "a chat has one"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(arguments, words, chat):
    done = chat("Hello\n", *arguments)
    assert done.code == 2 and words in done.err and done.out == ""

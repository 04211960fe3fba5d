"""Records of preferences -> a chosen and a rejected conversation, or one with a label.

The prompt is the same for both answers and is not learned; an answer is what follows
it, from an assistant's turn on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxpeft.data.chat_formats import (
    openai_turns,
    sharegpt_turns,
    system_of,
    tools_of,
)
from jaxpeft.data.columns import Fields, Record, column_of, string, value_of
from jaxpeft.data.conversation import Conversation, Message, Sample, checked
from jaxpeft.data.formats import COLUMNS, alpaca_prompt, unlearned
from jaxpeft.data.kinds import Kind
from jaxpeft.errors import InputError

Turns = Callable[[Record, Fields, str], list[Message]]
SIDES = ("chosen", "rejected")
_LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
# Numbers of answers times their weights that KTO's authors take: 1:1 to 4:3.
_UNLIKE = 4 / 3


def alpaca(record: Record, fields: Fields) -> Sample:
    """The pair in an Alpaca record: `chosen` and `rejected` in the place of `output`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    prompt = alpaca_prompt(record, fields)
    return _pair(record, fields, prompt, openai_turns)


def sharegpt(record: Record, fields: Fields) -> Sample:
    """The pair in a ShareGPT record: `conversations`, then `chosen` or `rejected`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, or roles do not alternate.
    """
    prompt = sharegpt_turns(record, fields, "conversations")
    return _pair(record, fields, prompt, sharegpt_turns)


def messages(record: Record, fields: Fields) -> Sample:
    """The pair in a record of messages, as TRL has them.

    `chosen` and `rejected` are answers, texts or lists of messages, to the prompt in
    `prompt` (a text or a list) or `messages`. Without one they are whole conversations,
    and the prompt is what both begin with.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, or roles do not alternate.
    """
    prompt = _prompt(record, fields)
    return _pair(record, fields, prompt, openai_turns)


def labelled_alpaca(record: Record, fields: Fields) -> Sample:
    """The answer `output` of an Alpaca record, and its `label`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    answer = _text(string(record, fields, "output"))
    return _labelled(record, fields, alpaca_prompt(record, fields), [answer])


def labelled_sharegpt(record: Record, fields: Fields) -> Sample:
    """The last answer of a ShareGPT record, and its `label`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, or roles do not alternate.
    """
    turns = sharegpt_turns(record, fields, "conversations")
    return _labelled(record, fields, turns[:-1], turns[-1:])


def labelled_messages(record: Record, fields: Fields) -> Sample:
    """The answer in a record of messages, and its `label`.

    It is `completion`, a text or a list of messages, after `prompt`; or the last of
    `messages`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, or roles do not alternate.
    """
    if value_of(record, fields, "completion", required=False) is None:
        turns = openai_turns(record, fields, "messages")
        return _labelled(record, fields, turns[:-1], turns[-1:])
    answer = _answer(record, fields, "completion", openai_turns)
    return _labelled(record, fields, _prompt(record, fields), answer)


def _prompt(record: Record, fields: Fields) -> list[Message]:
    """The turns of `prompt` or `messages`; none where there is no such column."""
    value = value_of(record, fields, "prompt", required=False)
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [{"role": "user", "content": value}]
    name = "prompt" if value is not None else "messages"
    if value is None and value_of(record, fields, name, required=False) is None:
        return []
    return openai_turns(record, fields, name)


def _pair(record: Record, fields: Fields, prompt: list[Message], read: Turns) -> Sample:
    answers = [_answer(record, fields, side, read) for side in SIDES]
    if not prompt:
        prompt, answers = _parted(answers)
    talks = []
    for side, answer in zip(SIDES, answers, strict=True):
        try:
            talks.append(_talk(record, fields, prompt, answer))
        except InputError as error:
            place = f"column {column_of(fields, side)!r}"
            raise InputError(*(f"{place}: {p}" for p in error.problems)) from error
    return Sample(tuple(talks))


def _parted(answers: list[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """What both conversations begin with, and what each goes on with."""
    shortest = min(map(len, answers))
    same = 0
    while same < shortest and answers[0][same] == answers[1][same]:
        same += 1
    # Of equal conversations, or where one goes on after the other, an answer is left.
    same = min(same, shortest - 1)
    while same > 0 and answers[0][same]["role"] != "assistant":
        same -= 1
    if same == 0:
        raise InputError(
            "chosen and rejected do not begin with the same prompt; give the prompt in "
            "a column 'prompt', or both as whole conversations that begin alike"
        )
    return answers[0][:same], [answer[same:] for answer in answers]


def _answer(record: Record, fields: Fields, name: str, read: Turns) -> list[Message]:
    """The turns of an answer that is a text, a turn or a list of turns."""
    value = value_of(record, fields, name, required=True)
    column = column_of(fields, name)
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return [_text(value)]
    if isinstance(value, dict):
        record = {**record, column: [value]}
    return read(record, fields, name)


def _text(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _talk(
    record: Record, fields: Fields, prompt: Sequence[Message], answer: list[Message]
) -> Conversation:
    if answer and answer[0]["role"] != "assistant":
        raise InputError(
            f"an answer begins with a turn of {answer[0]['role']!r}; it has to be the "
            "assistant's"
        )
    if not answer:
        raise InputError("the answer is empty: a list without a turn")
    turns = [*map(unlearned, prompt), *answer]
    return checked(turns, tools_of(record, fields), system=system_of(record, fields))


def _labelled(
    record: Record, fields: Fields, prompt: Sequence[Message], answer: list[Message]
) -> Sample:
    talk = _talk(record, fields, prompt, answer)
    return Sample((talk,), {"label": _label(record, fields)})


def _label(record: Record, fields: Fields) -> float:
    value = value_of(record, fields, "label", required=True)
    said = str(value).strip().lower()  # text of a CSV file, too
    if said not in _LABELS:
        raise InputError(
            f"column {column_of(fields, 'label')!r} has to be true or false (or 1 or "
            "0), whether the answer is wanted; it is "
            f"{type(value).__name__} {str(value)[:40]!r}"
        )
    return _LABELS[said]


def equal_pairs(path: str, examples: Any) -> list[str]:
    """A line where pairs have two answers that are equal, after cutting.

    Args:
        path: the source.
        examples: `data.Examples` of it, chosen and rejected in turns.

    Raises:
        InputError: all of them are.
    """
    pairs = len(examples) // 2
    count = sum(
        np.array_equal(_tokens(examples, 2 * i), _tokens(examples, 2 * i + 1))
        for i in range(pairs)
    )
    if not count:
        return []
    if count == pairs:
        raise InputError(
            f"{path}: in all {pairs:,} pairs the chosen and the rejected answer are "
            "the same after cutting at data.max_length, so that nothing can be "
            "learned; raise max_length, or look at the two columns"
        )
    return [
        f"{path}: in {count:,} of {pairs:,} pairs the chosen and the rejected answer "
        "are the same after cutting at data.max_length: nothing is learned from them"
    ]


def _tokens(examples: Any, number: int) -> Any:
    first = examples.starts[number]
    return examples.tokens[first : first + examples.lengths[number]]


def counted_labels(path: str, examples: Any) -> list[str]:
    """How many answers are wanted and how many are not, where those are unlike.

    Args:
        path: the source.
        examples: `data.Examples` of it.
    """
    wanted = int(examples.columns["label"].sum())
    others = len(examples) - wanted
    few, many = sorted((wanted, others))
    if many <= _UNLIKE * few:
        return []
    return [
        f"{path}: {wanted:,} answers are wanted, {others:,} are not; make them count "
        "alike with objective.desirable_weight and objective.undesirable_weight"
    ]


def _fields(*more: str) -> dict[str, tuple[str, ...]]:
    alpaca = tuple(name for name in COLUMNS["alpaca"] if name != "output")
    talk = (*COLUMNS["messages"], "prompt")
    return {
        "alpaca": (*alpaca, *more, "role", "content"),
        "sharegpt": (*COLUMNS["sharegpt"], *more),
        "messages": (*talk, *more),
        "prompt_completion": (*talk, *more),
    }


PAIRS = Kind(
    "pairs",
    {
        "alpaca": alpaca,
        "sharegpt": sharegpt,
        "messages": messages,
        "prompt_completion": messages,
    },
    _fields(*SIDES),
    together=2,
    cuts="prompt",
    check=equal_pairs,
)
LABELLED = Kind(
    "labelled",
    {
        "alpaca": labelled_alpaca,
        "sharegpt": labelled_sharegpt,
        "messages": labelled_messages,
        "prompt_completion": labelled_messages,
    },
    _fields("output", "completion", "label"),
    columns={"label": "float32"},
    cuts="prompt",
    check=counted_labels,
)

"""Records -> conversations or plain text, one function a format.

A user's own column names come in as `fields`, {the format's name: the file's name}.
Those that hold lists of turns are in `chat_formats`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from jaxpeft.data.chat_formats import (
    messages,
    openai_turns,
    sharegpt,
    system_of,
    tools_of,
)
from jaxpeft.data.columns import Fields, Record, list_of, string, value_of, weight
from jaxpeft.data.conversation import Conversation, Message, Sample, checked
from jaxpeft.data.kinds import Kind
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError, suggest

__all__ = ["COLUMNS", "FORMATS", "SFT", "Conversation", "Message", "parse", "readable"]


def parse(
    rows: Sequence[Row], format: str, fields: Fields | None = None
) -> list[Conversation | str]:
    """Each row as a conversation, or as text for format `text`; the order stays.

    Args:
        rows: the records, and where each stands.
        format: one of `FORMATS`.
        fields: the format's name for a column -> the file's, or None for one that is
            not read.

    Raises:
        InputError: the format or a field is unknown, or the format cannot read some
            rows (a column is missing, has the wrong type, roles do not alternate,
            ...); the first few are reported together, each with its file and row.
    """
    rejects = Rejects("data")
    parsed = readable(rows, format, fields, rejects)
    rejects.settle(len(rows))
    return [item for _, sample in parsed for item in sample.items]


def readable(
    rows: Sequence[Row],
    format: str,
    fields: Fields | None,
    rejects: Rejects,
    kind: Kind | None = None,
) -> list[tuple[Row, Sample]]:
    """The rows that a format can read, and what each is; the order stays.

    Args:
        rows: the records, and where each stands.
        format: one of `FORMATS`.
        fields: the format's name for a column -> the file's, or None for one that is
            not read.
        rejects: is given the others.
        kind: says which formats there are; None: that of `sft`.

    Raises:
        InputError: the format or a field is unknown.
    """
    kind = kind or SFT
    if format not in kind.readers:
        fits = ", ".join(kind.readers)
        raise InputError(
            f"data format {format!r} has not what this objective reads; choose from "
            f"{fits}"
            if format in FORMATS
            else f"data format {format!r} is unknown{suggest(format, kind.readers)}"
        )
    fields, known = fields or {}, kind.fields[format]
    known = (*known, "weight") if kind.weighs else known
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise InputError(
            *(
                f"data fields: format {format} has no field {name!r}"
                f"{suggest(name, known)}"
                for name in unknown
            )
        )
    read, parsed = kind.readers[format], []
    for row in rows:
        try:
            if isinstance(row.value, str):
                item: Sample | Conversation | str = _document(row.value, format, kind)
            else:
                item = read(row.value, fields)
            sample = Sample.of(item)
            if kind.weighs and isinstance(row.value, Mapping):
                sample = replace(sample, weight=weight(row.value, fields))
        except InputError as error:
            rejects.add(InputError(*(f"{row.place}: {p}" for p in error.problems)))
        else:
            parsed.append((row, sample))
    return parsed


def _document(text: str, format: str, kind: Kind) -> str:
    if kind.columns:
        raise InputError(
            f"a txt file holds plain documents, without {' and '.join(kind.columns)}; "
            "this objective needs a jsonl, csv or parquet file"
        )
    if format != "text":
        raise InputError(
            f"a txt file holds plain documents, not {format} records; set format: text "
            "or convert it to jsonl"
        )
    return text


def alpaca(record: Record, fields: Fields) -> Conversation:
    """The conversation in an Alpaca record, whose last answer is `output`.

    The last question is `instruction`, with `input` on a new line where there is one;
    `system` and the pairs of `history` come before it.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    turns = alpaca_prompt(record, fields)
    answer: Message = {
        "role": "assistant",
        "content": string(record, fields, "output"),
    }
    return checked([*turns, answer], system=system_of(record, fields))


def alpaca_prompt(record: Record, fields: Fields) -> list[Message]:
    """The turns of an Alpaca record before its answer, without the system prompt.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    turns: list[Message] = []
    for pair in list_of(record, fields, "history", required=False):
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise InputError(
                f"'history' needs [question, answer] pairs; found {pair!r}"
            )
        turns += _exchange(*pair)
    prompt = string(record, fields, "instruction")
    if more := string(record, fields, "input", default=""):
        prompt = f"{prompt}\n{more}" if prompt else more
    return [*turns, {"role": "user", "content": prompt}]


def prompt_completion(record: Record, fields: Fields) -> Conversation:
    """The conversation of `prompt` and `completion`, after an optional `system`.

    Both are texts, or both lists of messages as in the format `messages` (TRL's
    conversational form, with optional `tools`); learned are the completion's answers.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    system = system_of(record, fields)
    given = [value_of(record, fields, n, required=True) for n in _PROMPT_COMPLETION]
    if any(isinstance(value, list) for value in given):
        before, learned = (openai_turns(record, fields, n) for n in _PROMPT_COMPLETION)
        turns = [*map(unlearned, before), *learned]
        return checked(turns, tools_of(record, fields), system=system)
    prompt, completion = (string(record, fields, n) for n in _PROMPT_COMPLETION)
    return checked(_exchange(prompt, completion), system=system)


_PROMPT_COMPLETION = ("prompt", "completion")


def unlearned(message: Message) -> Message:
    """The message, of weight 0 where it is the assistant's.

    Args:
        message: of a prompt.
    """
    return message | ({"weight": 0} if message["role"] == "assistant" else {})


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


def text(record: Record, fields: Fields) -> str:
    """The plain document in the column `text`, for continued pre-training.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: the column is missing or holds no text.
    """
    return string(record, fields, "text")


FORMATS: dict[str, Callable[[Record, Fields], Conversation | str]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "messages": messages,
    "prompt_completion": prompt_completion,
    "text": text,
}

# The names that `fields` may map, per format.
COLUMNS: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "from", "value", "system", "tools"),
    "messages": ("messages", "role", "content", "system", "tools"),
    "prompt_completion": (
        *("prompt", "completion", "system"),
        *("role", "content", "tools"),  # where those are lists of messages
    ),
    "text": ("text",),
}

# What `objective: sft` makes of records: one example of each.
SFT = Kind("sft", FORMATS, COLUMNS, weighs=True)

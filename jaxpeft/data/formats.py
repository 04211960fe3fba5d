"""Records -> conversations or plain text, one function a format.

A user's own column names come in as `fields`, {the format's name: the file's name}.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpeft.data.columns import (
    Fields,
    Record,
    column_of,
    list_of,
    string,
    value_of,
)
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError, suggest

Message = dict[str, Any]

# More than these are seldom read, and one mistake often spoils every row.
_MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Conversation:
    """A conversation, as a chat template renders it.

    Attributes:
        messages: {"role": system|user|assistant|tool, "content": str, ...} for each
            message. A sharegpt function call is an assistant message whose content is
            the call's JSON, marked with "function_call": True.
        tools: JSON schemas of the functions that the assistant may call; None: there
            are none.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


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
    if format not in FORMATS:
        raise InputError(f"data format {format!r} is unknown{suggest(format, FORMATS)}")
    fields = fields or {}
    unknown = [name for name in fields if name not in COLUMNS[format]]
    if unknown:
        raise InputError(
            *(
                f"data fields: format {format} has no field {name!r}"
                f"{suggest(name, COLUMNS[format])}"
                for name in unknown
            )
        )
    read, parsed, problems = FORMATS[format], [], []
    for row in rows:
        try:
            if isinstance(row.value, str):
                parsed.append(_document(row.value, format))
            else:
                parsed.append(read(row.value, fields))
        except InputError as error:
            problems += [f"{row.place}: {problem}" for problem in error.problems]
            if len(problems) >= _MAX_PROBLEMS:
                break
    if problems:
        raise InputError(*problems)
    return parsed


def _document(text: str, format: str) -> str:
    if format != "text":
        raise InputError(
            f"a txt file holds plain documents, not {format} records; set format: text "
            "or convert it to jsonl"
        )
    return text


def _system(record: Record, fields: Fields) -> list[Message]:
    text = string(record, fields, "system", default="")
    return [{"role": "system", "content": text}] if text else []


def _tools(record: Record, fields: Fields) -> list[dict[str, Any]] | None:
    """The functions on offer as JSON schemas; given as a list or as its JSON text."""
    value = value_of(record, fields, "tools", required=False)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"column 'tools' is not valid JSON ({error})") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        raise InputError("column 'tools' has to be a list of function descriptions")
    return [
        t if "function" in t else {"type": "function", "function": t} for t in value
    ]


def _checked(messages: list[Message], tools: Any = None) -> Conversation:
    """The conversation, once its turns alternate and end with the assistant's."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise InputError("the conversation is empty")
    allowed, before = ("user",), "the start"
    for number, message in enumerate(turns, 1):
        role = message["role"]
        if role not in allowed:
            raise InputError(
                f"roles do not alternate: turn {number} is {role!r} after {before}; "
                f"expected {' or '.join(allowed)}"
            )
        allowed = _MAY_FOLLOW[role]
        before = repr(role)
    if turns[-1]["role"] != "assistant":
        raise InputError(
            f"the last turn is {turns[-1]['role']!r}; it has to be the assistant's, "
            "which is what training learns"
        )
    return Conversation(messages, tools)


_MAY_FOLLOW = {
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


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
    messages = _system(record, fields)
    for pair in list_of(record, fields, "history", required=False):
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(text, str) for text in pair)
        ):
            raise InputError(
                f"'history' needs [question, answer] pairs; found {pair!r}"
            )
        messages += _exchange(*pair)
    prompt = string(record, fields, "instruction")
    if more := string(record, fields, "input", default=""):
        prompt = f"{prompt}\n{more}" if prompt else more
    return _checked(messages + _exchange(prompt, string(record, fields, "output")))


def prompt_completion(record: Record, fields: Fields) -> Conversation:
    """The conversation of `prompt` and `completion`, after an optional `system`.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped.
    """
    prompt = string(record, fields, "prompt")
    completion = string(record, fields, "completion")
    return _checked(_system(record, fields) + _exchange(prompt, completion))


def _exchange(prompt: str, answer: str) -> list[Message]:
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]


def sharegpt(record: Record, fields: Fields) -> Conversation:
    """The conversation in a ShareGPT record.

    Its columns are `conversations`, a list of {"from", "value"}, and optionally
    `system` and `tools`. gpt and function_call are the assistant's turns (both are
    learned); observation is a tool's answer.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, a role is unknown, or roles do not
            alternate.
    """
    messages = _system(record, fields)
    for turn in _turns(record, fields, "conversations"):
        sender = string(turn, fields, "from")
        if sender not in _SHAREGPT_ROLES:
            raise InputError(
                f"'from' is {sender!r}{suggest(sender, ('human', 'gpt', 'system'))}; "
                f"known are {', '.join(_SHAREGPT_ROLES)}"
            )
        message: Message = {
            "role": _SHAREGPT_ROLES[sender],
            "content": string(turn, fields, "value"),
        }
        if sender == "function_call":
            message["function_call"] = True
        messages.append(message)
    return _checked(messages, _tools(record, fields))


_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def messages(record: Record, fields: Fields) -> Conversation:
    """The conversation in a record of OpenAI's format.

    Its columns are `messages`, a list of {"role", "content"}, and optionally `tools`.
    Content may be text or a list of text parts. An assistant's message may have
    `tool_calls` in place of content, and `weight: 0` so that it is not learned.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, a role is unknown, or roles do not
            alternate.
    """
    turns = [_openai_message(m, fields) for m in _turns(record, fields, "messages")]
    return _checked(turns, _tools(record, fields))


def _turns(record: Record, fields: Fields, name: str) -> list[Record]:
    turns = list_of(record, fields, name)
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise InputError(
                f"turn {number} of {column_of(fields, name)!r} has to be an object; it "
                f"is {type(turn).__name__} {str(turn)[:40]!r}"
            )
    return turns


def _openai_message(message: Record, fields: Fields) -> Message:
    role = string(message, fields, "role")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant", "tool"):
        raise InputError(
            f"role {role!r} is unknown"
            f"{suggest(role, ('system', 'user', 'assistant', 'tool'))}"
        )
    names = (column_of(fields, "role"), column_of(fields, "content"))
    turn = {k: v for k, v in message.items() if k not in names and v is not None}
    calls = turn.get("tool_calls")
    if calls:
        turn["tool_calls"] = [_openai_call(call) for call in calls]
    content = message.get(names[1])
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    elif content is not None or not calls:
        content = string(message, fields, "content")
    return {"role": role, "content": content or "", **turn}


def _text_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise InputError(f"content parts have to be text; found {str(part)[:60]!r}")
    return text


def _openai_call(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, as chat templates expect them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "name" not in function:
        raise InputError(f"tool_calls need a function with a name; found {call!r}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise InputError(
                f"the arguments of the call to {function['name']!r} are not valid JSON "
                f"({error})"
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}


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
    "messages": ("messages", "role", "content", "tools"),
    "prompt_completion": ("prompt", "completion", "system"),
    "text": ("text",),
}

"""Records that hold a list of turns -> conversations: sharegpt, messages.

In messages of errors turns are counted from 1, as they stand in the record's list.
"""

from collections.abc import Callable
from typing import Any

from jaxpeft.data.calls import after_thought, calls_of, parse_calls
from jaxpeft.data.columns import (
    Fields,
    Record,
    column_of,
    factor,
    list_of,
    string,
    value_of,
)
from jaxpeft.data.conversation import Conversation, Message, checked
from jaxpeft.data.json_text import parse_value
from jaxpeft.errors import InputError, suggest

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
_OPENAI_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # before there were tools
}


def sharegpt(record: Record, fields: Fields) -> Conversation:
    """The conversation in a ShareGPT record.

    Its columns are `conversations`, a list of {"from", "value"}, and optionally
    `system` and `tools`. gpt and function_call are the assistant's turns (both are
    learned, but those with `weight: 0`); observation is a tool's answer.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, a role is unknown, or roles do not
            alternate.
    """
    turns = sharegpt_turns(record, fields, "conversations")
    return checked(turns, tools_of(record, fields), system=system_of(record, fields))


def sharegpt_turns(record: Record, fields: Fields, name: str) -> list[Message]:
    """The messages in a column that holds a list of {"from", "value"}.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.
        name: the format's name for the column.

    Raises:
        InputError: it is no such list.
    """
    return _turns(record, fields, name, _sharegpt_turn)


def _sharegpt_turn(turn: Record, fields: Fields) -> Message:
    sender = string(turn, fields, "from")
    if sender not in _SHAREGPT_ROLES:
        raise InputError(f"'from' is {sender!r}{suggest(sender, _SHAREGPT_ROLES)}")
    message: Message = {
        "role": _SHAREGPT_ROLES[sender],
        "content": string(turn, fields, "value"),
    }
    if sender == "function_call":
        parse_calls(after_thought(message["content"])[1])
        message["function_call"] = True
    return message | _weight(turn, message["role"])


def messages(record: Record, fields: Fields) -> Conversation:
    """The conversation in a record of OpenAI's format.

    Its columns are `messages`, a list of {"role", "content"}, and optionally `system`
    and `tools`. Content may be text or a list of text parts. An assistant's message may
    have `tool_calls` (or the older `function_call`) beside content or in place of it,
    and `weight: 0` so that it is not learned; its `loss_weight` is what each of its
    tokens counts in the loss.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: a column is missing or mistyped, a role is unknown, or roles do not
            alternate.
    """
    turns = openai_turns(record, fields, "messages")
    return checked(turns, tools_of(record, fields), system=system_of(record, fields))


def openai_turns(record: Record, fields: Fields, name: str) -> list[Message]:
    """The messages in a column that holds a list of {"role", "content"}.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.
        name: the format's name for the column.

    Raises:
        InputError: it is no such list.
    """
    return _turns(record, fields, name, _openai_turn)


def _turns(
    record: Record,
    fields: Fields,
    name: str,
    read: Callable[[Record, Fields], Message],
) -> list[Message]:
    turns = []
    for number, turn in enumerate(list_of(record, fields, name), 1):
        place = f"turn {number} of {column_of(fields, name)!r}"
        if not isinstance(turn, dict):
            raise InputError(
                f"{place} has to be an object; it is {type(turn).__name__} "
                f"{str(turn)[:40]!r}"
            )
        try:
            turns.append(read(turn, fields))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return turns


def _openai_turn(message: Record, fields: Fields) -> Message:
    role = string(message, fields, "role")
    if role not in _OPENAI_ROLES:
        raise InputError(f"role {role!r} is unknown{suggest(role, _OPENAI_ROLES)}")
    names = (column_of(fields, "role"), column_of(fields, "content"))
    aside = {*names, "tool_calls", "function_call", "weight", "loss_weight"}
    turn = {k: v for k, v in message.items() if k not in aside and v is not None}
    role = _OPENAI_ROLES[role]
    calls = calls_of(dict(message))
    if calls and role != "assistant":
        raise InputError(f"a message of role {role!r} has tool_calls; delete them")
    content = message.get(names[1])
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    elif content is not None or not calls:
        content = string(message, fields, "content")
    called = {"tool_calls": calls} if calls else {}
    return {
        "role": role,
        "content": content or "",
        **turn,
        **called,
        **_weight(message, role),
    }


def _text_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str):
        raise InputError(f"content parts have to be text; found {str(part)[:60]!r}")
    return text


def _weight(turn: Record, role: str) -> dict[str, float]:
    """An assistant's `loss_weight`, and `weight` where that is 0: not learned."""
    if role != "assistant":
        return {}
    share = turn.get("loss_weight")
    said = {} if share is None else {"loss_weight": factor(share, "loss_weight")}
    weight = turn.get("weight")
    if weight is None:
        return said
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise InputError(
            f"weight has to be the number 1, or 0 for an answer that is not learned; "
            f"it is {weight!r}; fractions are loss_weight's"
        )
    return said if weight else {"weight": 0}


def system_of(record: Record, fields: Fields) -> str:
    """The system prompt in the column of that name; empty where there is none.

    Args:
        record: the record, column by column.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: the column holds no text.
    """
    return string(record, fields, "system", default="")


def tools_of(record: Record, fields: Fields) -> list[dict[str, Any]] | None:
    """The functions on offer as JSON schemas; None where there are none.

    Args:
        record: the record, column by column; `tools` is a list, or its JSON text.
        fields: the format's name for a column -> the file's.

    Raises:
        InputError: the column holds no list of functions.
    """
    value = value_of(record, fields, "tools", required=False)
    if isinstance(value, str) and value.strip():
        try:
            value = parse_value(value)
        except InputError as error:
            raise InputError(f"column 'tools' is {error}") from error
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list) or not all(isinstance(t, dict) for t in value):
        raise InputError("column 'tools' has to be a list of function descriptions")
    return [
        t if "function" in t else {"type": "function", "function": t} for t in value
    ]

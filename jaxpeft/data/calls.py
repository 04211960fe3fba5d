"""Function calls, as records write them, in the form of OpenAI's `tool_calls`.

Each is {"id", "type": "function", "function": {"name", "arguments"}}, the arguments as
an object, as chat templates expect them.
"""

import json
import re
from typing import Any

from jaxpeft.data.json_text import parse_value
from jaxpeft.errors import InputError

Call = dict[str, Any]

_THOUGHT = re.compile(r"\s*<think>.*</think>\s*", re.DOTALL)
_FORM = '{"name": ..., "arguments": {...}}'


def calls_of(message: dict[str, Any]) -> list[Call]:
    """The calls of a message in OpenAI's format; none where it only has the keys.

    Args:
        message: its `tool_calls` are read, a list or its JSON text, and in place of
            them the older `function_call`.

    Raises:
        InputError: what stands there is no call.
    """
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        calls = parse_value(calls) if calls.strip() else None
    if calls:
        if not isinstance(calls, list):
            raise InputError(
                f"tool_calls has to be a list; it is {type(calls).__name__} "
                f"{str(calls)[:40]!r}"
            )
        return [_call(call) for call in calls]
    called = message.get("function_call")
    return [_numbered(0, _function(called))] if called else []


def parse_calls(text: str) -> list[Call]:
    """The calls in a turn of ShareGPT's role function_call.

    Args:
        text: the JSON of one call or of a list of calls, each {"name", "arguments"}.

    Raises:
        InputError: it is no JSON, or no call.
    """
    try:
        value = parse_value(text)
    except InputError as error:
        raise InputError(
            f"the function call {text.strip()[:40]!r} is {error}; write it as JSON, "
            f"{_FORM}"
        ) from error
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise InputError(f"the function call is an empty list; write {_FORM}")
    return [_numbered(number, _function(call)) for number, call in enumerate(calls)]


def after_thought(text: str) -> tuple[str, str]:
    """A turn of ShareGPT's role function_call, as (what is thought first, the call)."""
    thought = _THOUGHT.match(text)
    end = thought.end() if thought else 0
    return text[:end].strip(), text[end:]


def as_text(calls: list[Call]) -> str:
    """Calls as the JSON that ShareGPT's role function_call has: one, or a list.

    Args:
        calls: at least one.
    """
    plain = [
        {key: call["function"].get(key, {}) for key in ("name", "arguments")}
        for call in calls
    ]
    return json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False)


def _numbered(number: int, function: dict[str, Any]) -> Call:
    # Mistral's templates insist on nine letters and digits.
    return {"id": f"call{number:05d}", "type": "function", "function": function}


def _call(call: Any) -> Call:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise InputError(f"tool_calls need a function with a name; found {call!r}")
    return {**call, "function": {**function, **_function(function)}}


def _function(value: Any) -> dict[str, Any]:
    """A function's name and its arguments as an object."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise InputError(
            f"a function call needs a name; found {str(value)[:60]!r}: write {_FORM}"
        )
    arguments = value.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            arguments = parse_value(arguments)
        except InputError as error:
            raise InputError(
                f"the arguments of the call to {value['name']!r} are {error}"
            ) from error
    return {"name": value["name"], "arguments": arguments or {}}

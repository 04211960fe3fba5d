"""Function calls and their answers, in the form that a chat template can write.

Templates differ: some know `tools`, `tool_calls` and the role `tool`; to others a call
is the assistant's text and its answer a user's turn. Which it is, is tried out on
probes, since a template may as well raise as leave out what it does not know.
"""

import json
from typing import Any

from jaxpeft.data.formats import Conversation, Message

PROBE = "probe7f3a"
_ID = "call00000"  # Mistral's templates insist on nine letters and digits

_ASK: Message = {"role": "user", "content": "a"}
_SAY: Message = {"role": "assistant", "content": "b"}
_ANSWER: Message = {"role": "tool", "content": PROBE, "name": "f", "tool_call_id": _ID}


def _call(name: str) -> Message:
    function = {"name": name, "arguments": {}}
    calls = [{"id": _ID, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


# Conversations that show PROBE in a template that can express a call or an answer.
CALL_PROBES = (
    Conversation([_ASK, _call(PROBE), {**_ANSWER, "content": "c"}, _SAY]),
    Conversation([_ASK, _call(PROBE)]),
)
ANSWER_PROBES = (
    Conversation([_ASK, _call("f"), _ANSWER, _SAY]),
    Conversation([_ASK, _SAY, _ANSWER, _SAY]),
)


def needs_probing(conversation: Conversation) -> bool:
    """Whether it holds calls or answers whose form depends on the template."""
    return any(
        message["role"] == "tool" or message.get("function_call")
        for message in conversation.messages
    )


def adapt(
    conversation: Conversation,
    *,
    knows_tools: bool,
    knows_calls: bool,
    knows_answers: bool,
) -> Conversation:
    """The conversation without what the template does not know.

    Unknown tools are described in the system prompt, an unknown call is the
    assistant's text (its JSON), an unknown answer is a user's turn.

    Args:
        conversation: the conversation as its format gives it.
        knows_tools: whether the template writes the functions on offer.
        knows_calls: whether it writes `tool_calls`.
        knows_answers: whether it writes messages of the role `tool`.
    """
    turns: list[Message] = []
    calls: list[dict[str, Any]] = []
    for message in conversation.messages:
        if message["role"] == "tool":
            message = _answer(message, calls) if knows_answers else _as_user(message)
        elif message.get("function_call"):
            calls = parse_calls(message["content"]) if knows_calls else []
            message = {
                "role": "assistant",
                "content": "" if calls else message["content"],
            }
            if calls:
                message["tool_calls"] = calls
        turns.append(message)
    if conversation.tools and not knows_tools:
        return Conversation(_with_tools_described(turns, conversation.tools))
    return Conversation(turns, conversation.tools)


def _as_user(message: Message) -> Message:
    return {"role": "user", "content": message["content"]}


def _answer(message: Message, calls: list[dict[str, Any]]) -> Message:
    """The answer with the id of the call it belongs to, which some templates write."""
    if len(calls) != 1 or "tool_call_id" in message:
        return message
    name = calls[0]["function"]["name"]
    return {**message, "tool_call_id": calls[0]["id"], "name": name}


def parse_calls(text: str) -> list[dict[str, Any]]:
    """The function calls in a text, as `tool_calls` has them; none if it holds no call.

    Args:
        text: the JSON of one call or of a list of calls, each {"name", "arguments"}.
    """
    try:
        calls = json.loads(text)
    except ValueError:
        return []
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return []
    return [
        {
            "id": f"call{number:05d}",
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", {})},
        }
        for number, call in enumerate(calls)
    ]


def _with_tools_described(turns: list[Message], tools: list) -> list[Message]:
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    offer = "You may call these functions:\n" + "\n".join(lines)
    if turns[0]["role"] == "system":
        system = f"{turns[0]['content']}\n\n{offer}"
        return [{**turns[0], "content": system}, *turns[1:]]
    return [{"role": "system", "content": offer}, *turns]

"""Function calls and their answers, in the form that a chat template can write.

Templates differ: some know `tools`, `tool_calls` and the role `tool`; to others a call
is the assistant's text and its answer a user's turn. Which it is, is tried out on
probes, since a template may as well raise as leave out what it does not know.
"""

import json
from typing import Any

from jaxpeft.data.calls import after_thought, as_text, parse_calls
from jaxpeft.data.conversation import Conversation, Message

PROBE = "probe7f3a"
_ID = "call00000"  # Mistral's templates insist on nine letters and digits

_ASK: Message = {"role": "user", "content": "a"}
_SAY: Message = {"role": "assistant", "content": "b"}
_ANSWER: Message = {"role": "tool", "content": PROBE, "name": "f", "tool_call_id": _ID}


def _call(name: str) -> Message:
    function = {"name": name, "arguments": {}}
    calls = [{"id": _ID, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


# Some templates write calls only where functions are on offer.
_TOOL = {"name": "f", "description": "", "parameters": {}}
_TOOLS = [{"type": "function", "function": _TOOL}]

# Conversations that show PROBE in a template that can express a call or an answer.
CALL_PROBES = (
    Conversation([_ASK, _call(PROBE), {**_ANSWER, "content": "c"}, _SAY]),
    Conversation([_ASK, _call(PROBE)]),
    Conversation([_ASK, _call(PROBE), {**_ANSWER, "content": "c"}, _SAY], _TOOLS),
)
ANSWER_PROBES = (
    Conversation([_ASK, _call("f"), _ANSWER, _SAY]),
    Conversation([_ASK, _SAY, _ANSWER, _SAY]),
)


def needs_probing(conversation: Conversation) -> bool:
    """Whether it holds calls or answers whose form depends on the template."""
    return any(
        message["role"] == "tool"
        or message.get("function_call")
        or message.get("tool_calls")
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
    assistant's text (its JSON, after what else it said), an unknown answer is a user's
    turn.

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
            message, calls = _from_text(message, knows_calls)
        elif message.get("tool_calls"):
            calls = message["tool_calls"] if knows_calls else []
            message = message if knows_calls else _in_text(message)
        turns.append(message)
    if conversation.tools and not knows_tools:
        return Conversation(_with_tools_described(turns, conversation.tools))
    return Conversation(turns, conversation.tools)


def _from_text(
    message: Message, knows_calls: bool
) -> tuple[Message, list[dict[str, Any]]]:
    """A message whose content is a call's JSON, and the calls if they are written."""
    plain = {key: message[key] for key in message if key != "function_call"}
    if not knows_calls:
        return plain, []
    thought, text = after_thought(message["content"])
    calls = parse_calls(text)
    return {**plain, "content": thought, "tool_calls": calls}, calls


def _in_text(message: Message) -> Message:
    """A message with its calls as JSON in its content."""
    plain = {key: message[key] for key in message if key != "tool_calls"}
    said = [message["content"]] if message["content"] else []
    return {**plain, "content": "\n".join([*said, as_text(message["tool_calls"])])}


def _as_user(message: Message) -> Message:
    return {"role": "user", "content": message["content"]}


def _answer(message: Message, calls: list[dict[str, Any]]) -> Message:
    """The answer with the id of the call it belongs to, which some templates write."""
    if len(calls) != 1 or "id" not in calls[0] or "tool_call_id" in message:
        return message
    name = calls[0]["function"]["name"]
    return {"name": name, **message, "tool_call_id": calls[0]["id"]}


def _with_tools_described(turns: list[Message], tools: list) -> list[Message]:
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    offer = "You may call these functions:\n" + "\n".join(lines)
    if turns[0]["role"] == "system":
        system = f"{turns[0]['content']}\n\n{offer}"
        return [{**turns[0], "content": system}, *turns[1:]]
    return [{"role": "system", "content": offer}, *turns]

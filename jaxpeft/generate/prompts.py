"""A file of prompts -> questions: one record a request."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft.data.formats import Conversation
from jaxpeft.data.sources import read as read_rows
from jaxpeft.errors import InputError, suggest
from jaxpeft.generate.answering import Question

KEYS = ("prompt", "messages", "system", "adapter", "id")
ROLES = ("system", "user", "assistant")
MOST_PROBLEMS = 10


def read(
    path: str, *, system: str | None = None, raw: bool = False, adapter: str | None
) -> tuple[list[dict[str, Any]], list[Question]]:
    """The requests in a jsonl file, or in any other that data can come in.

    A record has a `prompt`, or `messages` that end with the user's, and perhaps a
    `system` message, an `adapter` and an `id` of any kind.

    Args:
        path: the file.
        system: the system message of records without one.
        raw: whether prompts are texts to continue, without chat template.
        adapter: of records without one.

    Returns:
        (records, questions), one of each for each request.

    Raises:
        InputError: with the first records that cannot be understood.
    """
    records, questions, problems = [], [], []
    for row in read_rows(path):
        record = {"prompt": row.value} if isinstance(row.value, str) else row.value
        faults = _problems(record, raw)
        problems += [f"{row.place}: {problem}" for problem in faults]
        if len(problems) >= MOST_PROBLEMS:
            break
        if not faults:
            content = record["prompt"] if raw else _conversation(record, system)
            name = record.get("adapter", adapter)
            records.append(record)
            questions.append(Question(content, row.place, name))
    if problems:
        raise InputError(*problems)
    return records, questions


def conversation(prompt: str, system: str | None) -> Conversation:
    """A conversation of one message of the user's.

    Args:
        prompt: the message.
        system: the system message before it, or None.
    """
    return _conversation({"prompt": prompt}, system)


def _conversation(record: Mapping[str, Any], system: str | None) -> Conversation:
    turns = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    system = record.get("system", system)
    if system and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return Conversation(list(turns))


def _problems(record: Mapping[str, Any], raw: bool) -> list[str]:
    problems = [
        f"{key!r} is no key of a request{suggest(key, KEYS)}"
        for key in record
        if key not in KEYS
    ]
    if ("prompt" in record) == ("messages" in record):
        problems.append("give one of 'prompt' and 'messages'")
    for key in ("prompt", "system", "adapter"):
        if key in record and not isinstance(record[key], str):
            problems.append(f"{key}: found {record[key]!r}; write a text")
    if raw:
        problems += [
            f"{key}: needs the chat template; leave it out, or --raw"
            for key in ("messages", "system")
            if key in record
        ]
    elif "messages" in record:
        problems += _message_problems(record["messages"])
    return problems


def _message_problems(messages: Any) -> list[str]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return [f"messages: found {messages!r}; write a list of messages"]
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(
            message.get("content"), str
        ):
            return [f"messages: number {number} has no text as its 'content'"]
        if message.get("role") not in ROLES:
            return [
                f"messages: number {number}: role: found {message.get('role')!r}; "
                f"choose from {', '.join(ROLES)}"
            ]
    if messages[-1]["role"] != "user":
        role = messages[-1]["role"]
        return [f"messages: the last is {role!r}; end with the user's, to be answered"]
    return []

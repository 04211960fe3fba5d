"""Where the contents of messages stand in what a chat template makes of them.

The conversation is rendered with placeholders for its contents. That gives the
template's own text between them; put together with the contents it has to give the
whole text exactly, and so every content's place is known.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxpeft.data.conversation import Conversation, Message
from jaxpeft.data.template import ChatTemplate
from jaxpeft.errors import InputError

# Private-use characters: no data holds them, and templates pass them through.
_MARK = re.compile("\ue000([0-9]+)\ue001")
# What templates take apart from the answer that follows it.
_THOUGHTS = re.compile(r".*</think>\n*", re.DOTALL)


class Layout(NamedTuple):
    """A rendered conversation, as the template's text around the contents.

    Attributes:
        blank: the conversation with placeholders for its contents.
        order: the number of the message of each placeholder, as they stand.
        gaps: the template's text before each of them, and after the last.
        spans: where each content stands in the text, (first character, one past it).
    """

    blank: Conversation
    order: list[int]
    gaps: list[str]
    spans: list[tuple[int, int]]

    def end_of(self, message: int) -> int | None:
        """Where the content of a message ends; None if it does not stand there once."""
        if self.order.count(message) != 1:
            return None
        return self.spans[self.order.index(message)][1]


def layout(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    place: str,
    *,
    only: Collection[int] | None = None,
) -> Layout | None:
    """How a conversation's contents stand in its text.

    Args:
        template: the chat template.
        conversation: the conversation, prepared by `ChatTemplate.prepare`.
        text: what the template makes of it.
        place: where the conversation stands, for messages.
        only: the numbers of the messages to look for; None: all.

    Returns:
        The layout; None where text and placeholders do not agree.
    """
    messages = conversation.messages
    wanted = range(len(messages)) if only is None else only
    # An empty answer has a place too, but some templates treat it as none.
    for marks_empty in (True, False):
        marked = [
            _marked(message, i, marks_empty) if i in wanted else message
            for i, message in enumerate(messages)
        ]
        blank = replace(conversation, messages=marked)
        found = _layout(template, blank, messages, text, place)
        if found or not any(_is_empty(message) for message in messages):
            return found
    return None


def _layout(
    template: ChatTemplate,
    blank: Conversation,
    messages: Sequence[Message],
    text: str,
    place: str,
) -> Layout | None:
    try:
        (skeleton,) = template.render([blank], [place])
    except InputError:
        return None
    marks = list(_MARK.finditer(skeleton))
    order = [int(mark[1]) for mark in marks]
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(skeleton)]
    gaps = [skeleton[a:b] for a, b in zip(edges[::2], edges[1::2])]
    spans = _align(text, gaps, [_text_of(messages[i]) for i in order])
    return None if spans is None else Layout(blank, order, gaps, spans)


def _is_empty(message: Message) -> bool:
    return not message["content"] and not message.get("tool_calls")


def _text_of(message: Message) -> str:
    """What a placeholder stands for: the answer, or the name of a function called."""
    if message["content"] or not message.get("tool_calls"):
        return message["content"][_thoughts_end(message["content"]) :]
    return message["tool_calls"][0]["function"]["name"]


def _thoughts_end(content: str) -> int:
    thoughts = _THOUGHTS.match(content)
    return thoughts.end() if thoughts else 0


def _marked(message: Message, number: int, marks_empty: bool) -> Message:
    content, mark = message["content"], f"\ue000{number}\ue001"
    if content or (_is_empty(message) and marks_empty):
        # Thoughts stay, since templates write an answer with them unlike one without.
        return {**message, "content": content[: _thoughts_end(content)] + mark}
    if not message.get("tool_calls"):
        return message
    first, *others = message["tool_calls"]
    first = {**first, "function": {**first["function"], "name": mark}}
    return {**message, "tool_calls": [first, *others]}


def variants(content: str) -> list[str]:
    """A content as templates write it: whole, trimmed, without its thoughts.

    Args:
        content: as the conversation has it.

    Returns:
        The different ones, the longest first.
    """
    answer = content.rpartition("</think>")[2]
    written = (content, content.strip(), answer, answer.strip(), answer.lstrip("\n"))
    return sorted(set(written), key=len, reverse=True)


def _align(
    text: str, gaps: Sequence[str], contents: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Where each content stands, if gaps and contents in turn are exactly `text`."""
    if not text.startswith(gaps[0]):
        return None
    position, spans = len(gaps[0]), []
    for content, gap in zip(contents, gaps[1:]):
        for variant in variants(content):
            if text.startswith(variant + gap, position):
                break
        else:
            return None
        spans.append((position, position + len(variant)))
        position += len(variant) + len(gap)
    return spans if position == len(text) else None


def after_mark(text: str, before: int | None) -> str | None:
    """What follows placeholder number `before`, the last one, in a rendered prompt.

    Args:
        text: a prompt of a conversation with placeholders.
        before: the number of the message; None: no placeholder stands in the prompt.

    Returns:
        The text after it; None where another one is the last.
    """
    marks = list(_MARK.finditer(text))
    if before is None:
        return None if marks else text
    return text[marks[-1].end() :] if marks and int(marks[-1][1]) == before else None

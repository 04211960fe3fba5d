"""Where each assistant turn stands in a rendered conversation.

Two ways, of which the second is for templates that rewrite what came earlier:

1. A turn starts where the conversation up to it, rendered with the generation prompt,
   ends, and stops where the conversation with it ends; both texts have to be prefixes
   of the whole one.
2. The conversation is rendered with placeholders for its contents. That gives the
   template's own text between them; put together with the contents it has to give the
   whole text exactly, and so every content's place is known.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxpeft.data.conversation import Conversation, Message, is_learned
from jaxpeft.data.template import ChatTemplate, until

# Private-use characters: no data holds them, and templates pass them through.
_MARK = re.compile("\ue000([0-9]+)\ue001")


class Turn(NamedTuple):
    """Where one assistant turn stands, in characters of the rendered text.

    Attributes:
        start: where it begins, right after the generation prompt.
        content_end: where its content ends; None if the template wrote something else
            (a tool call), so that only start and stop are known.
        stop: where the next message begins, or the text ends.
        is_exact: whether `stop` is certain; else it is only an upper bound.
    """

    start: int
    content_end: int | None
    stop: int
    is_exact: bool = True


def find_turns(
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    texts: Sequence[str],
    places: Sequence[str],
) -> list[list[Turn] | None]:
    """Where the learned assistant turns of each conversation stand in its text.

    Assistant messages with `weight: 0` (OpenAI's) are left out.

    Args:
        template: the chat template.
        conversations: the conversations, prepared by `ChatTemplate.prepare`.
        texts: what the template makes of each.
        places: where each conversation stands, for messages.

    Returns:
        For each conversation its turns in order, or None where they cannot be
            established.

    Raises:
        InputError: the template refuses the beginning of a conversation.
    """
    wanted = [(c, i) for c, v in enumerate(conversations) for i in _assistants(v)]
    heads = template.render(
        [until(conversations[c], i) for c, i in wanted],
        [places[c] for c, _ in wanted],
        prompt=True,
    )
    inner = [(c, i) for c, i in wanted if i + 1 < len(conversations[c].messages)]
    wholes = template.render(
        [until(conversations[c], i + 1) for c, i in inner],
        [places[c] for c, _ in inner],
    )
    head_of, whole_of = dict(zip(wanted, heads)), dict(zip(inner, wholes))

    turns_of_each = []
    for c, conversation in enumerate(conversations):
        learned = _assistants(conversation)
        turns = by_prefix(
            conversation.messages,
            texts[c],
            [head_of[c, i] for i in learned],
            [whole_of.get((c, i), texts[c]) for i in learned],
        )
        if turns is None:
            turns = by_placeholders(template, conversation, texts[c], places[c])
        turns_of_each.append(turns)
    return turns_of_each


def _assistants(conversation: Conversation) -> list[int]:
    return [i for i, message in enumerate(conversation.messages) if is_learned(message)]


def by_prefix(
    messages: Sequence[Message], text: str, heads: Sequence[str], wholes: Sequence[str]
) -> list[Turn] | None:
    """The learned turns, found by rendering the conversation up to each of them.

    Args:
        messages: the conversation's messages.
        text: what the template makes of all of them.
        heads: for each learned turn, the text up to it with the generation prompt.
        wholes: for each learned turn, the text up to it and including it.

    Returns:
        The learned turns in order; None where the texts do not establish them.
    """
    learned = [message for message in messages if is_learned(message)]
    if not all(map(text.startswith, heads)):
        return None
    turns = []
    bounds = [len(head) for head in heads[1:]] + [len(text)]
    for message, head, whole, bound in zip(learned, heads, wholes, bounds):
        start = len(head)
        is_exact = text.startswith(whole) and len(whole) >= start
        stop = len(whole) if is_exact else bound
        content_end = _find_content(message, text, start, stop)
        if content_end is None and not is_exact:
            return None
        turns.append(Turn(start, content_end, stop, is_exact))
    return turns


def _variants(content: str) -> list[str]:
    """The content as templates write it: whole, trimmed, without its thoughts."""
    answer = content.rpartition("</think>")[2]
    written = (content, content.strip(), answer, answer.strip(), answer.lstrip("\n"))
    return sorted(set(written), key=len, reverse=True)


def _find_content(message: Message, text: str, start: int, stop: int) -> int | None:
    if message.get("tool_calls"):
        return None
    for variant in _variants(message["content"]):
        at = text.find(variant, start, stop)
        if at >= 0:
            return at + len(variant)
    return None


def by_placeholders(
    template: ChatTemplate, conversation: Conversation, text: str, place: str
) -> list[Turn] | None:
    """The learned turns, found by the template's own text between the contents.

    Args:
        template: the chat template.
        conversation: the conversation, prepared by `ChatTemplate.prepare`.
        text: what the template makes of it.
        place: where the conversation stands, for messages.

    Returns:
        The learned turns in order; None where the texts do not establish them.

    Raises:
        InputError: the template refuses the conversation with placeholders in it.
    """
    marked = [
        _with_text(message, f"\ue000{i}\ue001")
        for i, message in enumerate(conversation.messages)
    ]
    blank = replace(conversation, messages=marked)
    skeleton = template.render([blank], [place])[0]
    marks = list(_MARK.finditer(skeleton))
    order = [int(mark[1]) for mark in marks]
    edges = [0, *(edge for mark in marks for edge in mark.span()), len(skeleton)]
    gaps = [skeleton[a:b] for a, b in zip(edges[::2], edges[1::2])]
    spans = _align(text, gaps, [_text_of(conversation.messages[i]) for i in order])
    if spans is None:
        return None

    turns = []
    for i in _assistants(conversation):
        if order.count(i) != 1:
            return None
        at = order.index(i)
        head = template.render([until(blank, i)], [place], prompt=True)[0]
        header = _after_mark(head, order[at - 1] if at else None)
        if header is None:
            return None
        # The template's part before the content: what the prompt already has of it.
        gap_start = spans[at - 1][1] if at else 0
        start = gap_start + _common_prefix(gaps[at], header)
        stop = spans[at + 1][0] if at + 1 < len(spans) else len(text)
        turns.append(Turn(start, spans[at][1], stop, is_exact=stop == len(text)))
    return turns


def _text_of(message: Message) -> str:
    """What a placeholder stands for: the content, or the name of a function called."""
    if message["content"] or not message.get("tool_calls"):
        return message["content"]
    return message["tool_calls"][0]["function"]["name"]


def _with_text(message: Message, text: str) -> Message:
    if message["content"]:
        return {**message, "content": text}
    if not message.get("tool_calls"):
        return message
    first, *others = message["tool_calls"]
    first = {**first, "function": {**first["function"], "name": text}}
    return {**message, "tool_calls": [first, *others]}


def _align(
    text: str, gaps: Sequence[str], contents: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Where each content stands, if gaps and contents in turn are exactly `text`."""
    if not text.startswith(gaps[0]):
        return None
    position, spans = len(gaps[0]), []
    for content, gap in zip(contents, gaps[1:]):
        for variant in _variants(content):
            if text.startswith(variant + gap, position):
                break
        else:
            return None
        spans.append((position, position + len(variant)))
        position += len(variant) + len(gap)
    return spans if position == len(text) else None


def _after_mark(head: str, before: int | None) -> str | None:
    """What follows placeholder number `before`, the last one, in a rendered prompt."""
    marks = list(_MARK.finditer(head))
    if before is None:
        return None if marks else head
    return head[marks[-1].end() :] if marks and int(marks[-1][1]) == before else None


def _common_prefix(a: str, b: str) -> int:
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))

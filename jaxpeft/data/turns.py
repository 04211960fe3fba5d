"""Where each assistant turn stands in a rendered conversation.

Two ways, of which the second is for templates that rewrite what came earlier:

1. A turn starts where the conversation up to it, rendered with the generation prompt,
   ends, and stops where the conversation with it ends; both texts have to be prefixes
   of the whole one.
2. By the places of the contents, see `contents.layout`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxpeft.data.contents import Layout, after_mark, layout, variants
from jaxpeft.data.conversation import Conversation, Message, is_learned, weight_of
from jaxpeft.data.template import ChatTemplate, until
from jaxpeft.errors import InputError

# Learned turns up to which each is found by rendering the conversation up to it.
MANY = 8


class Turn(NamedTuple):
    """Where one assistant turn stands, in characters of the rendered text.

    Attributes:
        start: where it begins, right after the generation prompt.
        content_end: where its content ends; None if the template wrote something else
            (a tool call), so that only start and stop are known.
        stop: where the next message begins, or the text ends.
        is_exact: whether `stop` is certain; else it is only an upper bound.
        block_end: where a `{% generation %}` block in it ends; None: there is none.
        weight: what each of its tokens counts in the loss.
    """

    start: int
    content_end: int | None
    stop: int
    is_exact: bool = True
    block_end: int | None = None
    weight: float = 1.0


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
        InputError: the template refuses the beginning of a conversation, or leaves out
            a function call.
    """
    learned_of = [_assistants(conversation) for conversation in conversations]
    prefixes = _prefixes(template, conversations, places, learned_of)

    turns_of_each = []
    for c, conversation in enumerate(conversations):
        if len(learned_of[c]) > MANY:
            heads, wholes = many_prefixes(
                template, conversation, texts[c], places[c], learned_of[c]
            )
        else:
            heads = [prefixes[c, i, True] for i in learned_of[c]]
            wholes = [prefixes.get((c, i, False), texts[c]) for i in learned_of[c]]
        turns = by_prefix(template, conversation, texts[c], places[c], heads, wholes)
        if turns is None:
            turns = by_placeholders(template, conversation, texts[c], places[c])
        if turns is not None:
            _require_calls(template, conversation, texts[c], places[c], turns)
        turns_of_each.append(turns)
    return turns_of_each


def _prefixes(
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    places: Sequence[str],
    learned_of: Sequence[Sequence[int]],
) -> dict[tuple[int, int, bool], str]:
    """(conversation, learned message, whether before it) -> the text up to there."""
    found = {}
    for before in (True, False):
        wanted = [
            (c, i)
            for c, learned in enumerate(learned_of)
            if len(learned) <= MANY
            for i in learned
            if before or i + 1 < len(conversations[c].messages)
        ]
        texts = template.render(
            [until(conversations[c], i + (not before)) for c, i in wanted],
            [places[c] for c, _ in wanted],
            prompt=before,
        )
        found |= {(c, i, before): text for (c, i), text in zip(wanted, texts)}
    return found


def many_prefixes(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    place: str,
    learned: Sequence[int],
) -> tuple[list[str], list[str]]:
    """The texts up to each of many learned messages, and through it, as `by_prefix`
    takes them.

    To render the conversation up to each would cost the square of its length. The
    template's own text before a content, from the content before it on, says where the
    prompt ends in it: that is found by rendering once for each text that occurs, and
    for the first and the last few messages in any case.

    Args:
        template: the chat template.
        conversation: the conversation, prepared by `ChatTemplate.prepare`.
        text: what the template makes of it.
        place: where the conversation stands, for messages.
        learned: the numbers of its learned messages.
    """
    last = len(conversation.messages) - 1
    sure = {*learned[: MANY // 2], *learned[-MANY // 2 :]}
    found = layout(template, conversation, text, place)
    at = {number: n for n, number in enumerate(found.order)} if found else {}
    known: dict[tuple[bool, str] | None, int | None] = {}

    def up_to(number: int, before: bool) -> str:
        if not before and number == last:
            return text
        # A message that stands twice has no place of its own.
        n = at.get(number) if found and found.order.count(number) == 1 else None
        gap, start = None, 0
        if found and n is not None and not (before and n == 0):
            start = found.spans[n - before][1]
            gap = before, found.gaps[n + (not before)]
        if number not in sure and gap in known:
            size = known[gap]
            return "" if size is None else text[: start + size]
        (made,) = template.render(
            [until(conversation, number + (not before))], [place], prompt=before
        )
        if gap is not None:
            # None: what comes later changes what came before.
            size = len(made) - start if text.startswith(made) else None
            if known.setdefault(gap, size) != size:
                raise _Unlike
        return made

    try:
        return [up_to(i, True) for i in learned], [up_to(i, False) for i in learned]
    except _Unlike:  # what stands between contents does not say where a prompt ends
        prompts, wholes = (
            template.render(
                [until(conversation, i + after) for i in learned],
                [place] * len(learned),
                prompt=not after,
            )
            for after in (0, 1)
        )
        return prompts, [*wholes[:-1], text if learned[-1] == last else wholes[-1]]


class _Unlike(Exception):
    """Two prompts end at unlike places of the same text."""


def _assistants(conversation: Conversation) -> list[int]:
    return [i for i, message in enumerate(conversation.messages) if is_learned(message)]


def _require_calls(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    place: str,
    turns: Sequence[Turn],
) -> None:
    """Refuses a conversation whose calls the template does not write."""
    for turn, number in zip(turns, _assistants(conversation), strict=True):
        for call in conversation.messages[number].get("tool_calls", ()):
            name = call["function"]["name"]
            if name not in text[turn.start : turn.stop]:
                raise InputError(
                    f"{place}: the chat template of {template.name} leaves out the "
                    f"call to {name!r}; write it as text into the content of that "
                    "turn, or take a template that knows calls"
                )


def by_prefix(
    template: ChatTemplate,
    conversation: Conversation,
    text: str,
    place: str,
    heads: Sequence[str],
    wholes: Sequence[str],
) -> list[Turn] | None:
    """The learned turns, found by rendering the conversation up to each of them.

    Args:
        template: the chat template.
        conversation: the conversation, prepared by `ChatTemplate.prepare`.
        text: what the template makes of it.
        place: where the conversation stands, for messages.
        heads: for each learned turn, the text up to it with the generation prompt.
        wholes: for each learned turn, the text up to it and including it.

    Returns:
        The learned turns in order; None where the texts do not establish them.
    """
    if not all(map(text.startswith, heads)):
        return None
    turns = []
    bounds = [len(head) for head in heads[1:]] + [len(text)]
    end_of = _ends(template, conversation, text, place)
    numbers = _assistants(conversation)
    for number, head, whole, bound in zip(numbers, heads, wholes, bounds):
        start = len(head)
        is_exact = text.startswith(whole) and len(whole) >= start
        stop = len(whole) if is_exact else bound
        message = conversation.messages[number]
        content_end, is_sure = _find_content(message, text, start, stop)
        if content_end is not None and not is_sure:
            known = end_of(number)
            inside = known is not None and start <= known <= stop
            content_end = known if inside else content_end
        if content_end is None and not is_exact:
            return None
        turns.append(
            Turn(start, content_end, stop, is_exact, weight=weight_of(message))
        )
    return turns


def _find_content(
    message: Message, text: str, start: int, stop: int
) -> tuple[int | None, bool]:
    """Where a content ends between two places, and whether that is beyond doubt."""
    if message.get("tool_calls"):
        return None, True
    written = variants(message["content"])
    for variant in written:
        at = text.find(variant, start, stop)
        if at >= 0:
            # The template's own text may hold a short one as well.
            first = text.find(written[-1], start, stop)
            is_only = text.find(written[-1], first + 1, stop) < 0
            return at + len(variant), bool(written[-1]) and is_only
    return None, True


def _ends(
    template: ChatTemplate, conversation: Conversation, text: str, place: str
) -> Callable[[int], int | None]:
    """Message -> where its content ends, by placeholders, rendered when first asked."""
    found: list[Layout | None] = []

    def end_of(number: int) -> int | None:
        if not found:
            found.append(layout(template, conversation, text, place))
        known = found[0] or layout(template, conversation, text, place, only=[number])
        return known and known.end_of(number)

    return end_of


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
        InputError: the template refuses the beginning of the conversation with
            placeholders in it.
    """
    found = layout(template, conversation, text, place)
    if found is None:
        return None
    order, spans = found.order, found.spans
    turns = []
    for i in _assistants(conversation):
        if order.count(i) != 1:
            return None
        at = order.index(i)
        head = template.render([until(found.blank, i)], [place], prompt=True)[0]
        header = after_mark(head, order[at - 1] if at else None)
        if header is None:
            return None
        # The template's part before the content: what the prompt already has of it.
        gap_start = spans[at - 1][1] if at else 0
        start = gap_start + _common_prefix(found.gaps[at], header)
        stop = spans[at + 1][0] if at + 1 < len(spans) else len(text)
        weight = weight_of(conversation.messages[i])
        turns.append(Turn(start, spans[at][1], stop, stop == len(text), weight=weight))
    return turns


def _common_prefix(a: str, b: str) -> int:
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def narrowed(
    turns: Sequence[Turn] | None, blocks: Sequence[tuple[int, int]], size: int
) -> list[Turn]:
    """The parts of turns that a template's `{% generation %}` blocks mark.

    A block that begins with the turn's header is learned from after it, and one that
    ends before the end-of-turn token is learned through it.

    Args:
        turns: where the turns stand; None where that is not known.
        blocks: where the blocks stand, (first character, one past it), in order.
        size: characters of the whole text.

    Returns:
        A turn for each block that stands in one.
    """
    if turns is None:
        edges = [start for start, _ in blocks[1:]] + [size]
        return [
            Turn(start, None, stop, is_exact=False, block_end=end)
            for (start, end), stop in zip(blocks, edges)
        ]
    parts: list[tuple[int, Turn]] = []
    for start, end in blocks:
        over = [n for n, t in enumerate(turns) if t.start <= end and start < t.stop]
        if over:
            turn = turns[over[-1]]
            begin, end = max(start, turn.start), max(end, turn.start)
            parts.append((over[-1], turn._replace(start=begin, block_end=end)))
    last = {number: n for n, (number, _) in enumerate(parts)}
    return [
        # Of several blocks in a turn all but the last end where they end.
        part if last[number] == n else part._replace(content_end=size)
        for n, (number, part) in enumerate(parts)
    ]

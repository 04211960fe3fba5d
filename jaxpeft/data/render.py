"""Conversations and documents -> tokens, and which of them are learned."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from jaxpeft.data.conversation import Conversation
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.template import ChatTemplate
from jaxpeft.data.tool_turns import PROBE
from jaxpeft.data.turns import Turn, find_turns
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts tokenized in one call: enough for all threads of the tokenizer, while the
# offsets of one chunk (Python tuples) stay small.
_CHUNK = 2048

T = TypeVar("T")
_Encoded = tuple[np.ndarray, np.ndarray]  # tokens, supervised; uncut


class Example(NamedTuple):
    """One training example.

    Attributes:
        tokens: the token ids.
        supervised: whether a token is itself a target that counts in the loss. Never
            the first, which nothing predicts.
        truncated: whether the example was longer and has been cut.
    """

    tokens: Int32[np.ndarray, " length"]
    supervised: Bool[np.ndarray, " length"]
    truncated: bool


def render(
    items: Sequence[Conversation | str],
    places: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    train_on: str = "assistant",
    split: bool = False,
    rejects: Rejects | None = None,
) -> list[Example]:
    """The examples that conversations or documents make, in their order.

    A conversation is rendered whole by the tokenizer's chat template and tokenized
    once. With `train_on: assistant` each assistant turn is supervised from right after
    the generation prompt through its end-of-turn token; what follows that is not.
    The end is known by its position, so that it also counts when it is the pad token.
    A document is the tokenizer's bos (if it adds one), the text, and eos, all
    supervised.

    Args:
        items: the conversations, or the documents.
        places: where each item stands, for messages, such as `train.jsonl:3 (row 3)`.
        tokenizer: the model's tokenizer, with its chat template.
        max_length: tokens in an example; what is longer is cut.
        train_on: "assistant", or "all": every token is supervised.
        split: whether documents over `max_length` become several examples instead of
            being cut.
        rejects: is given the conversations that cannot be rendered; None: they are an
            error.

    Raises:
        InputError: there is no fast tokenizer or no chat template, or a conversation is
            one that the template refuses, or in which the assistant's turns cannot be
            found.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{tokenizer.name_or_path}: this tokenizer has no tokenizer.json, which "
            "is needed to know where each token stands; convert it with transformers"
        )
    examples: list[Example] = []
    documents = [item for item in items if isinstance(item, str)]
    if documents:  # a format gives either these or conversations
        for chunk in _chunks(documents):
            examples += _cut(_encode_documents(chunk, tokenizer), max_length, split)
        return examples
    template = ChatTemplate(tokenizer)
    collected = rejects or Rejects(template.name)
    talks = template.prepare([item for item in items if isinstance(item, Conversation)])
    seen = 0
    for chunk, rows in zip(_chunks(talks), _chunks(places)):
        encoded = _encode_usable(chunk, rows, template, train_on, collected)
        examples += _cut(encoded, max_length, split=False)
        seen += len(chunk)
        if not collected.skip:
            collected.settle(seen)
    return examples


def _encode_usable(
    talks: Sequence[Conversation],
    places: Sequence[str],
    template: ChatTemplate,
    train_on: str,
    rejects: Rejects,
) -> list[_Encoded]:
    """Those conversations that can be encoded; the others are looked for by halving."""
    try:
        return _encode_conversations(talks, places, template, train_on)
    except InputError as error:
        if len(talks) == 1:
            rejects.add(error)
            return []
    half = len(talks) // 2
    return [
        encoded
        for part in (slice(half), slice(half, None))
        for encoded in _encode_usable(
            talks[part], places[part], template, train_on, rejects
        )
    ]


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK))


def _cut(encoded: Sequence[_Encoded], max_length: int, split: bool) -> list[Example]:
    examples = []
    for tokens, supervised in encoded:
        pieces = range(0, max(len(tokens), 1), max_length) if split else (0,)
        for at in pieces:
            mask = supervised[at : at + max_length].copy()
            mask[:1] = False
            is_cut = not split and len(tokens) > max_length
            examples.append(Example(tokens[at : at + max_length], mask, is_cut))
    return examples


def _encode_documents(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[_Encoded]:
    eos = tokenizer.eos_token_id
    encoded = tokenizer(list(texts), return_attention_mask=False, verbose=False)
    documents = []
    for ids in encoded["input_ids"]:  # pyright: ignore[reportGeneralTypeIssues]
        if eos is not None and (not ids or ids[-1] != eos):
            ids = [*ids, eos]
        tokens = np.array(ids, np.int32)
        documents.append((tokens, np.ones(len(tokens), bool)))
    return documents


def _encode_conversations(
    talks: Sequence[Conversation],
    places: Sequence[str],
    template: ChatTemplate,
    train_on: str,
) -> list[_Encoded]:
    texts = template.render(talks, places)
    encoded: Any = template.tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=train_on == "assistant",
        return_attention_mask=False,
        verbose=False,
    )
    tokens = [np.array(ids, np.int32) for ids in encoded["input_ids"]]
    if train_on == "all":
        return [(ids, np.ones(len(ids), bool)) for ids in tokens]

    special = special_ids(template.tokenizer)
    masks: dict[int, np.ndarray] = {}
    if template.marks_generation:
        masks = _generation_masks(talks, template, special, encoded)
    rest = [i for i in range(len(talks)) if i not in masks]
    learned = find_turns(
        template,
        [talks[i] for i in rest],
        [texts[i] for i in rest],
        [places[i] for i in rest],
    )
    for i, turns in zip(rest, learned):
        offsets = np.array(encoded["offset_mapping"][i], np.int64)
        mask = None if turns is None else mask_turns(tokens[i], offsets, turns, special)
        if mask is None:
            raise InputError(
                f"{places[i]}: cannot tell the assistant's turns apart in what the "
                f"chat template of {template.name} makes of this conversation (it "
                "rewrites earlier turns); mark them with {% generation %} in the "
                "template, or set data.train_on: all"
            )
        masks[i] = mask
    return [(ids, masks[i]) for i, ids in enumerate(tokens)]


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """The ids of all tokens that can end a turn: those marked special, and eos.

    Args:
        tokenizer: the model's tokenizer.

    Returns:
        The ids, (n,) int32, ascending.
    """
    added = tokenizer.added_tokens_decoder  # pyright: ignore[reportAttributeAccessIssue]
    ids = {i for i, token in added.items() if token.special}
    return np.array(sorted(ids | set(tokenizer.all_special_ids)), np.int32)


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of the special token that the chat template ends an answer with.

    Args:
        tokenizer: the model's tokenizer, with its chat template.

    Returns:
        The id; None where the template writes no such token, and without a template
            that can be used.
    """
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        template = ChatTemplate(tokenizer)
        talks = template.prepare([Conversation(talk)])
        (text,) = template.render(talks, [template.name])
    except InputError:
        return None
    after: Any = tokenizer(text.rpartition(PROBE)[2], add_special_tokens=False)
    special = set(special_ids(tokenizer).tolist())
    return next((i for i in after["input_ids"] if i in special), None)


def mask_turns(
    tokens: np.ndarray, offsets: np.ndarray, turns: Sequence[Turn], special: np.ndarray
) -> np.ndarray | None:
    """The mask of the tokens of `turns`, each through its end-of-turn token.

    The end of a turn is the first special token after its content, or where the
    content is not known, the last one in it; a template without any has its turn
    supervised whole.

    Args:
        tokens: (length,) int32, the ids of the rendered conversation.
        offsets: (length, 2) int64, the first character that each token covers, and one
            past the last.
        turns: where the learned turns stand in the text.
        special: the ids of the tokens that can end a turn.

    Returns:
        The mask, (length,) bool; None if a turn's end cannot be established.
    """
    mask = np.zeros(len(tokens), bool)
    if not len(tokens):
        return mask
    is_special = np.isin(tokens, special)
    ends = np.maximum.accumulate(offsets[:, 1])
    # Some tokenizers leave a token's leading space out of its offsets.
    starts = np.minimum(offsets[:, 0], np.append(offsets[0, 0], ends[:-1]))
    for turn in turns:
        first = int(np.searchsorted(ends, turn.start, "right"))
        if first < len(tokens) and starts[first] < turn.start and is_special[first]:
            first += 1  # the prompt's last token, which swallowed what follows it
        stop = int(np.searchsorted(starts, turn.stop))
        # Ends, not starts: an end-of-turn token may swallow the space before it.
        known = turn.content_end
        after = 0 if known is None else int(np.searchsorted(ends, known, "right"))
        after = max(first, after)
        marks = np.flatnonzero(is_special[after:stop]) + after
        if len(marks):
            stop = int(marks[-1] if known is None else marks[0]) + 1
        elif not turn.is_exact:
            return None
        mask[first:stop] = True
    return mask


def _generation_masks(
    talks: Sequence[Conversation],
    template: ChatTemplate,
    special: np.ndarray,
    encoded: Any,
) -> dict[int, np.ndarray]:
    """Masks from `{% generation %}` blocks, each brought to its end-of-turn token.

    Conversations that the blocks do not cover, or with turns of weight 0, are left out.
    """
    plain = [
        i
        for i, talk in enumerate(talks)
        if not any("weight" in message for message in talk.messages)
    ]
    masks = {}
    marked = template.encode_generation([talks[i] for i in plain])
    for i, (ids, flags) in zip(plain, marked):
        if any(flags) and ids == encoded["input_ids"][i]:
            offsets = np.array(encoded["offset_mapping"][i], np.int64)
            is_special = np.isin(ids, special)
            masks[i] = _end_runs(np.array(flags, bool), is_special, offsets)
    return masks


def _end_runs(
    mask: np.ndarray, is_special: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Each run of True ends with its last special token, or the one right after it."""
    ended = mask.copy()
    # transformers marks only the first token of a last character made of several.
    for i in np.flatnonzero(mask[:-1] & ~mask[1:]):
        while i + 1 < len(ended) and offsets[i + 1, 0] < offsets[i, 1]:
            i += 1
            ended[i] = True
    mask = ended.copy()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    for first, stop in zip(edges[::2], edges[1::2]):
        inside = np.flatnonzero(is_special[first:stop])
        if len(inside):
            ended[first + inside[-1] + 1 : stop] = False
        elif stop < len(mask) and is_special[stop]:
            ended[stop] = True
    return ended

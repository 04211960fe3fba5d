"""Conversations and documents -> tokens, and which of them are learned."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int32

from jaxpeft import console
from jaxpeft.data.conversation import Conversation
from jaxpeft.data.documents import encode as documents_ids
from jaxpeft.data.masks import mask_turns
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.template import ChatTemplate
from jaxpeft.data.tool_turns import PROBE
from jaxpeft.data.turns import Turn, find_turns, narrowed
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
        left_out: how many tokens more the example had before it was cut; 0: it is
            whole.
    """

    tokens: Int32[np.ndarray, " length"]
    supervised: Bool[np.ndarray, " length"]
    left_out: int

    @property
    def truncated(self) -> bool:
        """Whether the example has been cut."""
        return self.left_out > 0


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
        with console.Work("tokenizing documents", len(documents)) as work:
            for chunk in _chunks(documents):
                examples += _cut(_encode_documents(chunk, tokenizer), max_length, split)
                work.advance(len(chunk))
        return examples
    template = ChatTemplate(tokenizer)
    collected = rejects or Rejects(template.name)
    talks = template.prepare([item for item in items if isinstance(item, Conversation)])
    seen = 0
    with console.Work("tokenizing conversations", len(talks)) as work:
        for chunk, rows in zip(_chunks(talks), _chunks(places)):
            encoded = _encode_usable(chunk, rows, template, train_on, collected)
            examples += _cut(encoded, max_length, split=False)
            seen += len(chunk)
            if not collected.skip:
                collected.settle(seen)
            work.advance(len(chunk))
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
            left_out = 0 if split else max(len(tokens) - max_length, 0)
            examples.append(Example(tokens[at : at + max_length], mask, left_out))
    return examples


def _encode_documents(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[_Encoded]:
    eos = tokenizer.eos_token_id
    documents = []
    for ids in documents_ids(texts, tokenizer):
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
    turns_of_each = _learned_turns(talks, texts, places, template)
    masks = []
    for i, turns in enumerate(turns_of_each):
        offsets = np.array(encoded["offset_mapping"][i], np.int64)
        mask = (
            None
            if turns is None
            else mask_turns(texts[i], tokens[i], offsets, turns, special)
        )
        if mask is None:
            raise InputError(
                f"{places[i]}: cannot tell the assistant's turns apart in what the "
                f"chat template of {template.name} makes of this conversation (it "
                "rewrites earlier turns); mark them with {% generation %} in the "
                "template, or set data.train_on: all"
            )
        masks.append(mask)
    return list(zip(tokens, masks, strict=True))


def _learned_turns(
    talks: Sequence[Conversation],
    texts: Sequence[str],
    places: Sequence[str],
    template: ChatTemplate,
) -> list[list[Turn] | None]:
    """The turns that are learned, or what `{% generation %}` blocks mark of them."""
    if not template.marks_generation:
        return find_turns(template, talks, texts, places)
    turns_of_each = []
    for talk, text, place in zip(talks, texts, places, strict=True):
        turns = None
        # The blocks say enough where the template takes whole conversations alone.
        with contextlib.suppress(InputError):
            (turns,) = find_turns(template, [talk], [text], [place])
        # Whose turn a block is, is not known where some are not learned.
        is_whole = not any("weight" in message for message in talk.messages)
        blocks = template.generation_blocks(talk, text) if is_whole else []
        parts = narrowed(turns, blocks, len(text)) if blocks else []
        turns_of_each.append(parts or turns)
    return turns_of_each


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

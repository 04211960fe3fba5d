"""Conversations and documents -> tokens, and which of them are learned."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from jaxpeft.data.conversation import Conversation, Message, Sample
from jaxpeft.data.documents import encode as documents_ids
from jaxpeft.data.encoder import Encoder
from jaxpeft.data.formats import SFT
from jaxpeft.data.kinds import Kind
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

_Encoded = tuple[np.ndarray, np.ndarray]  # tokens, what each counts; uncut


class Example(NamedTuple):
    """One training example.

    Attributes:
        tokens: the token ids.
        supervised: whether a token is itself a target that counts in the loss. Never
            the first, which nothing predicts.
        left_out: how many tokens more the example had before it was cut; 0: it is
            whole.
        weights: what each token counts in the loss; None: 1 where it is supervised.
        columns: its value in each of the kind's columns.
    """

    tokens: Int32[np.ndarray, " length"]
    supervised: Bool[np.ndarray, " length"]
    left_out: int
    weights: Float32[np.ndarray, " length"] | None = None
    columns: Mapping[str, float] = {}

    @property
    def truncated(self) -> bool:
        """Whether the example has been cut."""
        return self.left_out > 0


def render(
    items: Sequence[Sample | Conversation | str],
    places: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    train_on: str = "assistant",
    split: bool = False,
    rejects: Rejects | None = None,
    kind: Kind = SFT,
) -> list[Example]:
    """The examples that conversations or documents make, in their order.

    A conversation is rendered whole by the tokenizer's chat template and tokenized
    once. With `train_on: assistant` each assistant turn is supervised from right after
    the generation prompt through its end-of-turn token; what follows that is not.
    The end is known by its position, so that it also counts when it is the pad token.
    A document is the tokenizer's bos (if it adds one), the text, and eos, all
    supervised.

    Args:
        items: the conversations, or the documents, or samples of either.
        places: where each item stands, for messages, such as `train.jsonl:3 (row 3)`.
        tokenizer: the model's tokenizer, with its chat template.
        max_length: tokens in an example; what is longer is cut.
        train_on: "assistant", or "all": every token is supervised.
        split: whether documents over `max_length` become several examples instead of
            being cut.
        rejects: is given the conversations that cannot be rendered; None: they are an
            error.
        kind: says how examples are cut, and how documents end.

    Raises:
        InputError: there is no fast tokenizer or no chat template, or a conversation is
            one that the template refuses, or in which the assistant's turns cannot be
            found.
    """
    renderer = Renderer(
        tokenizer, max_length=max_length, train_on=train_on, split=split, kind=kind
    )
    collected = rejects or Rejects(tokenizer.name_or_path)
    made = renderer.render([Sample.of(item) for item in items], places, collected)
    examples = [example for _, own in made for example in own]
    if not collected.skip:
        collected.settle(len(items))
    return examples


class Renderer:
    """What makes examples of conversations and documents, as `render` says.

    Args:
        tokenizer: as for `render`.
        max_length: as for `render`.
        train_on: as for `render`.
        split: as for `render`.
        kind: as for `render`.

    Raises:
        InputError: there is no fast tokenizer.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        max_length: int,
        train_on: str,
        split: bool,
        kind: Kind,
    ):
        if not tokenizer.is_fast:
            raise InputError(
                f"{tokenizer.name_or_path}: this tokenizer has no tokenizer.json, "
                "which is needed to know where each token stands; convert it with "
                "transformers"
            )
        self._tokenizer, self._kind, self._train_on = tokenizer, kind, train_on
        self._max_length, self._split = max_length, split
        self._encoder = Encoder(tokenizer)
        self._template: ChatTemplate | None = None

    def render(
        self, samples: Sequence[Sample], places: Sequence[str], rejects: Rejects
    ) -> Iterator[tuple[int, list[Example]]]:
        """The examples of samples.

        Args:
            samples: conversations, or documents; a format gives either.
            places: where each stands, for messages.
            rejects: is given those that cannot be rendered.

        Yields:
            The number of each other sample, and its examples.

        Raises:
            InputError: there is no chat template, or none that can be used.
        """
        if not samples:
            return
        is_text = isinstance(samples[0].items[0], str)
        if not is_text:
            samples = self._prepared(samples)
        for first in range(0, len(samples), _CHUNK):
            numbers = range(first, min(first + _CHUNK, len(samples)))
            if is_text:
                texts = [str(item) for n in numbers for item in samples[n].items]
                encoded = _encode_documents(texts, self._tokenizer, self._kind)
                yield from self._examples(samples, numbers, encoded)
            else:
                yield from self._usable(samples, places, numbers, rejects)

    def _prepared(self, samples: Sequence[Sample]) -> list[Sample]:
        if self._template is None:
            self._template = ChatTemplate(self._tokenizer)
        talks = _talks(samples)
        prepared = self._template.prepare(talks)
        if all(map(operator.is_, talks, prepared)):
            return list(samples)
        following = iter(prepared)
        return [
            replace(sample, items=tuple(next(following) for _ in sample.items))
            for sample in samples
        ]

    def _usable(
        self,
        samples: Sequence[Sample],
        places: Sequence[str],
        numbers: range,
        rejects: Rejects,
    ) -> Iterator[tuple[int, list[Example]]]:
        """Those samples that can be encoded; the others are looked for by halving."""
        assert self._template is not None
        chunk = [samples[n] for n in numbers]
        of_talks = [places[n] for n in numbers for _ in samples[n].items]
        try:
            encoded = _encode_conversations(
                _talks(chunk), of_talks, self._template, self._encoder, self._train_on
            )
        except InputError as error:
            if len(numbers) == 1:
                rejects.add(error)
                return
            half = len(numbers) // 2
            for part in (numbers[:half], numbers[half:]):
                yield from self._usable(samples, places, part, rejects)
        else:
            yield from self._examples(samples, numbers, encoded)

    def _examples(
        self, samples: Sequence[Sample], numbers: range, encoded: Sequence[_Encoded]
    ) -> Iterator[tuple[int, list[Example]]]:
        """The examples of each sample, cut at `max_length` or split there."""
        following = iter(encoded)
        split = self._split and isinstance(samples[numbers[0]].items[0], str)
        for number in numbers:
            sample = samples[number]
            own = [next(following) for _ in sample.items]
            pieces = _pieces(own, self._kind, self._max_length, split)
            yield number, [_example(piece, left, sample) for piece, left in pieces]


def _talks(samples: Sequence[Sample]) -> list[Conversation]:
    items = (item for sample in samples for item in sample.items)
    return [item for item in items if isinstance(item, Conversation)]


def _pieces(
    own: Sequence[_Encoded], kind: Kind, max_length: int, split: bool
) -> Iterator[tuple[_Encoded, int]]:
    """The parts of a sample's examples that stay, and how much each has lost."""
    if split:
        for tokens, weights in own:
            for at in range(0, max(len(tokens), 1), max_length):
                stop = at + max_length
                yield (tokens[at:stop], weights[at:stop]), 0
        return
    is_over = any(len(tokens) > max_length for tokens, _ in own)
    if not is_over:
        yield from ((one, 0) for one in own)
        return
    prompts = [_prompt(weights) for _, weights in own]
    answers = [len(tokens) - p for (tokens, _), p in zip(own, prompts, strict=True)]
    # Alike for all of them: an answer is weighed against another of the same prompt.
    room = max(max_length - max(answers, default=0), max_length // 2)
    for (tokens, weights), prompt in zip(own, prompts, strict=True):
        first = max(prompt - room, 0) if kind.cuts == "prompt" else 0
        kept = tokens[first : first + max_length]
        left_out = len(tokens) - len(kept)
        yield (kept, weights[first : first + max_length]), left_out


def _prompt(weights: np.ndarray) -> int:
    """How many tokens stand before the first that is learned."""
    learned = np.flatnonzero(weights)
    return int(learned[0]) if len(learned) else len(weights)


def _example(piece: _Encoded, left_out: int, sample: Sample) -> Example:
    tokens, own = piece
    weights = own * np.float32(sample.weight)
    weights[:1] = 0
    supervised = weights > 0
    is_plain = bool((weights == supervised).all())
    return Example(
        tokens, supervised, left_out, None if is_plain else weights, sample.columns
    )


def _encode_documents(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", kind: Kind
) -> list[_Encoded]:
    eos = tokenizer.eos_token_id if kind.ends_documents else None
    documents = []
    for ids in documents_ids(texts, tokenizer):
        if eos is not None and (not ids or ids[-1] != eos):
            ids = [*ids, eos]
        tokens = np.array(ids, np.int32)
        documents.append((tokens, np.ones(len(tokens), np.float32)))
    return documents


def _encode_conversations(
    talks: Sequence[Conversation],
    places: Sequence[str],
    template: ChatTemplate,
    encoder: Encoder,
    train_on: str,
) -> list[_Encoded]:
    texts = template.render(talks, places)
    encoded = encoder.encode(texts, places=train_on == "assistant")
    if train_on == "all":
        return [(one.tokens, np.ones(len(one.tokens), np.float32)) for one in encoded]

    special = _can_end(template.tokenizer)
    turns_of_each = _learned_turns(talks, texts, places, template)
    weighed = []
    for i, turns in enumerate(turns_of_each):
        tokens, of_tokens = encoded[i]
        weights = (
            None
            if turns is None or of_tokens is None
            else mask_turns(texts[i], tokens, of_tokens, turns, special)
        )
        if weights is None:
            raise InputError(
                f"{places[i]}: cannot tell the assistant's turns apart in what the "
                f"chat template of {template.name} makes of this conversation (it "
                "rewrites earlier turns); mark them with {% generation %} in the "
                "template, or set data.train_on: all"
            )
        weighed.append((tokens, weights))
    return weighed


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
        is_whole = not any(map(_has_weight, talk.messages))
        blocks = template.generation_blocks(talk, text) if is_whole else []
        parts = narrowed(turns, blocks, len(text)) if blocks else []
        turns_of_each.append(parts or turns)
    return turns_of_each


def _has_weight(message: Message) -> bool:
    return "weight" in message or "loss_weight" in message


def _can_end(tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
    """`special_ids` as a table: (ids,) bool."""
    ids = special_ids(tokenizer)
    table = np.zeros(max(len(tokenizer), int(ids.max(initial=0)) + 1), bool)
    table[ids] = True
    return table


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

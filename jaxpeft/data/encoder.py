"""Rendered texts -> token ids, and the characters that each token covers."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpeft.data.spelling import SPELLINGS, Places, Spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = 8  # texts by which it is seen that the short way gives the same
_MANY = 256  # texts that are worth a table of the vocabulary's bytes


class Encoded(NamedTuple):
    """A text in tokens.

    Attributes:
        tokens: (length,) int32, the ids.
        places: the first character that each covers, spaces before it among them, and
            one past the last, both (length,) int64 and ascending; None where they are
            not wanted.
    """

    tokens: np.ndarray
    places: Places


class Encoder:
    """A tokenizer over many texts, which get nothing put around them.

    transformers copies all that an encoding has into Python objects, which takes as
    long as the tokenizing; so the tokenizer behind it is asked itself, once the first
    texts have shown that it says the same.

    Args:
        tokenizer: the model's tokenizer, a fast one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer: Any = tokenizer
        self._behind: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._is_proven = False
        self._spelling: Spelling | None = None
        self._is_spelled = False  # whether it is known if the vocabulary has one

    def encode(self, texts: Sequence[str], *, places: bool) -> list[Encoded]:
        """The tokens of texts.

        Args:
            texts: what is encoded, special tokens written out.
            places: whether those of the tokens are wanted.
        """
        if not self._is_proven:
            self._prove(texts[:_PROBES])
        if self._behind is None:
            return self._encode_whole(texts, places)
        if not self._is_spelled and len(texts) >= _MANY:
            self._spelling, self._is_spelled = self._spell(texts[:_PROBES]), True
        if self._spelling is None:
            return self._encode_placed(texts, places)
        made = self._behind.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in made]
        tokens = [np.array(own, np.int32) for own in ids]
        if not places:
            return [Encoded(own, None) for own in tokens]
        known = self._spelling.places(texts, ids)
        # None: the tokenizer has changed this text before cutting it.
        return [
            self._encode_placed([text], True)[0] if own is None else Encoded(of, own)
            for text, of, own in zip(texts, tokens, known, strict=True)
        ]

    def _prove(self, texts: Sequence[str]) -> None:
        """Takes the short way only where it gives the same for some texts."""
        self._is_proven = True
        # It also makes the tokenizer forget a truncation or padding of its file.
        known = self._encode_whole(texts, True)
        if self._behind is not None:
            again = self._encode_placed(texts, True)
            if not all(map(_are_alike, known, again)):
                self._behind = None

    def _spell(self, texts: Sequence[str]) -> Spelling | None:
        """A table of bytes that gives the same tokens and places for some texts."""
        known = self._encode_placed(texts, True)
        made = self._behind.encode_batch_fast(list(texts), add_special_tokens=False)
        vocabulary = self._behind.get_vocab(with_added_tokens=True)
        for spell in SPELLINGS.values():
            ids = [encoding.ids for encoding in made]
            spelling = Spelling(vocabulary, spell)
            pairs = [
                (one, Encoded(np.array(own, np.int32), places))
                for one, own, places in zip(known, ids, spelling.places(texts, ids))
                if places is not None
            ]
            # Others are encoded again: that has to be the exception.
            if 2 * len(pairs) > len(texts) and all(_are_alike(*two) for two in pairs):
                return spelling
        return None

    def _encode_placed(self, texts: Sequence[str], places: bool) -> list[Encoded]:
        made = self._behind.encode_batch(list(texts), add_special_tokens=False)
        return [_read(encoding, places) for encoding in made]

    def _encode_whole(self, texts: Sequence[str], places: bool) -> list[Encoded]:
        encoded: Any = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=places,
            return_attention_mask=False,
            verbose=False,
        )
        tokens = [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        if not places:
            return [Encoded(ids, None) for ids in tokens]
        offsets = [
            np.array(pairs, np.int64).reshape(-1, 2)
            for pairs in encoded["offset_mapping"]
        ]
        return [
            Encoded(ids, whole_places(own))
            for ids, own in zip(tokens, offsets, strict=True)
        ]


def whole_places(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The characters of each token, spaces before it among them.

    Args:
        offsets: (length, 2) int64, the first character that each token covers, and one
            past the last, as a tokenizer has them: some leave a token's leading space
            out.

    Returns:
        The first character of each, and one past its last, both (length,) int64 and
            ascending.
    """
    ends = np.maximum.accumulate(offsets[:, 1])
    return np.minimum(offsets[:, 0], np.append(offsets[:1, 0], ends[:-1])), ends


def _are_alike(one: Encoded, other: Encoded) -> bool:
    """Whether tokens and places are equal."""
    places = zip(one.places or (), other.places or (), strict=True)
    return np.array_equal(one.tokens, other.tokens) and all(
        np.array_equal(*two) for two in places
    )


def _read(encoding: Any, places: bool) -> Encoded:
    tokens = np.array(encoding.ids, np.int32)
    if not places:
        return Encoded(tokens, None)
    flat = itertools.chain.from_iterable(encoding.offsets)
    offsets = np.fromiter(flat, np.int64, 2 * len(tokens)).reshape(-1, 2)
    return Encoded(tokens, whole_places(offsets))

"""Rendered texts -> token ids, and the characters that each token covers."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBES = 8  # texts by which it is seen that the short way gives the same


class Encoded(NamedTuple):
    """A text in tokens.

    Attributes:
        tokens: (length,) int32, the ids.
        offsets: (length, 2) int64, the first character that each covers, and one past
            the last; None where they are not wanted.
    """

    tokens: np.ndarray
    offsets: np.ndarray | None


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

    def encode(self, texts: Sequence[str], *, offsets: bool) -> list[Encoded]:
        """The tokens of texts.

        Args:
            texts: what is encoded, special tokens written out.
            offsets: whether the places of the tokens are wanted.
        """
        if not self._is_proven:
            self._prove(texts[:_PROBES])
        if self._behind is None:
            return self._encode_whole(texts, offsets)
        encodings = self._behind.encode_batch(list(texts), add_special_tokens=False)
        return [_read(encoding, offsets) for encoding in encodings]

    def _prove(self, texts: Sequence[str]) -> None:
        """Takes the short way only where it gives the same for some texts."""
        self._is_proven = True
        # It also makes the tokenizer forget a truncation or padding of its file.
        known = self._encode_whole(texts, True)
        behind, self._behind = self._behind, None
        if behind is None:
            return
        made = behind.encode_batch(list(texts), add_special_tokens=False)
        for one, encoding in zip(known, made, strict=True):
            again = _read(encoding, True)
            is_alike = np.array_equal(one.tokens, again.tokens)
            if not is_alike or not np.array_equal(_places(one), _places(again)):
                return
        self._behind = behind

    def _encode_whole(self, texts: Sequence[str], offsets: bool) -> list[Encoded]:
        encoded: Any = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            verbose=False,
        )
        tokens = [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        if not offsets:
            return [Encoded(ids, None) for ids in tokens]
        places = [
            np.array(pairs, np.int64).reshape(-1, 2)
            for pairs in encoded["offset_mapping"]
        ]
        return [Encoded(*one) for one in zip(tokens, places, strict=True)]


def _places(one: Encoded) -> np.ndarray:
    return np.zeros((0, 2), np.int64) if one.offsets is None else one.offsets


def _read(encoding: Any, offsets: bool) -> Encoded:
    tokens = np.array(encoding.ids, np.int32)
    if not offsets:
        return Encoded(tokens, None)
    flat = itertools.chain.from_iterable(encoding.offsets)
    places = np.fromiter(flat, np.int64, 2 * len(tokens))
    return Encoded(tokens, places.reshape(-1, 2))

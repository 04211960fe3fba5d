"""Text while its tokens arrive: whole characters, and never anything taken back."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no character yet
# Tokens decoded once more with each new one; beyond MOST only the last KEPT are.
MOST, KEPT = 64, 16


class TextStream:
    """The text of a growing sequence of tokens, special tokens left out.

    What `push` returns, and `end` at last, make up what the tokenizer decodes from all
    tokens at once. Bytes of an unfinished character are held back, and so is text that
    a later token changed. New tokens are decoded after some that came before, since
    decoders treat the first token otherwise (a leading space is dropped).

    Args:
        tokenizer: decodes the tokens.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._said = ""

    def push(self, token: int) -> str:
        """The text that can be said now that a token is there; often nothing."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith(UNFINISHED) or not text.startswith(self._said):
            return ""
        new, self._said = text[len(self._said) :], text
        if len(self._tokens) > MOST:
            self._forget()
        return new

    def end(self) -> str:
        """The text that was held back and will not be completed any more."""
        return self._decode(self._tokens)[len(self._said) :]

    def _forget(self) -> None:
        """Drops the oldest tokens, if the others decode to the same text without."""
        kept = self._tokens[-KEPT:]
        text = self._decode(kept)
        if text and UNFINISHED not in text and self._said.endswith(text):
            self._tokens, self._said = kept, text

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

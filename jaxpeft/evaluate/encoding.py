"""Texts -> the tokens that the harness asks about, by the rules of its own model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Encoding:
    """How texts become tokens; the rules are those of the harness's `HFLM`.

    Attributes:
        tokenizer: the model's, of transformers.
        longest: tokens of the model's context.
    """

    tokenizer: Any
    longest: int

    @property
    def prefix(self) -> int:
        """The token before what has no context: that of the beginning, or the end."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    def text(self, text: str) -> list[int]:
        """The tokens of a text, with what the tokenizer itself puts around it.

        A text that begins with the token of the beginning does not get another.

        Args:
            text: any text.
        """
        begun = text.startswith(self.tokenizer.decode(self.prefix))
        return self._encoded(text, around=not begun)

    def pair(self, context: str, continuation: str) -> Pair:
        """The tokens of a context, and those that a continuation adds to it.

        Both are tokenized as one text. Spaces at the end of the context count to the
        continuation, since most tokenizers join them to the word that follows.

        Args:
            context: what is given; where it is empty, `prefix` stands in its place.
            continuation: what is asked about.

        Returns:
            (context, continuation); one that is empty adds no token.
        """
        if not context:
            added = self._encoded(continuation, around=False)
            if added[:1] == [self.prefix]:
                return added[:1], added[1:]
            return [self.prefix], added
        before = self.text(context.rstrip())
        whole = self.text(context + continuation)
        return before or [self.prefix], whole[len(before) :]

    def windows(self, text: str) -> list[Pair]:
        """A text in parts that fit the model, each token predicted once.

        The first part begins after `prefix`; the last one has as much context before
        it as fits.

        Args:
            text: of any length.
        """
        tokens, longest = self.text(text), self.longest
        found: list[Pair] = []
        for start in range(0, len(tokens), longest):
            end = min(start + longest, len(tokens))
            if not start:
                found.append(([self.prefix], tokens[:end]))
            else:
                found.append((tokens[end - longest - 1 : start], tokens[start:end]))
        return found

    def prompt(self, text: str, room: int) -> list[int]:
        """The last tokens of what an answer continues; `prefix` where there are none.

        Args:
            text: what is given.
            room: the most tokens.
        """
        bos = self.tokenizer.bos_token
        begun = bos is not None and text.startswith(bos)
        return self._encoded(text, around=not begun)[-room:] or [self.prefix]

    def _encoded(self, text: str, around: bool) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=around, verbose=False)


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the texts that end it, one after another.

    Args:
        text: an answer.
        until: the texts; an empty one ends nothing.
    """
    for end in filter(None, until):
        text = text.split(end)[0]
    return text

"""Where tokens stand in a text, by what each of them spells."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


class Spelling:
    """The bytes of each token of a vocabulary.

    A tokenizer that keeps account of places takes a third longer, and its places are
    Python objects, one for each token. Most vocabularies say themselves where a token
    stands: what its tokens spell, end to end, is the text.

    Args:
        vocabulary: {token: its id}, added ones too.
        spell: a token as the vocabulary writes it -> its bytes, one of `SPELLINGS`.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], spell: Callable[[str], bytes]
    ) -> None:
        count = max(vocabulary.values(), default=-1) + 1
        self._bytes = [b""] * count
        for token, number in vocabulary.items():
            self._bytes[number] = spell(token)
        self._lengths = np.fromiter(map(len, self._bytes), np.int64, count)

    def places(
        self, text: str, ids: Sequence[int], tokens: np.ndarray
    ) -> np.ndarray | None:
        """The characters that each token covers; None if it spells another text.

        Args:
            text: what was encoded.
            ids: its tokens.
            tokens: (length,) int32, the same.

        Returns:
            (length, 2) int64, the first character of each, and one past its last. A
                character of several tokens belongs to each of them.
        """
        written = text.encode("utf-8", errors="surrogatepass")
        if b"".join([self._bytes[i] for i in ids]) != written:
            return None
        lengths = self._lengths[tokens]
        if not lengths.all():
            return None
        ends = np.cumsum(lengths)
        places = np.stack([ends - lengths, ends], axis=1)
        if len(written) == len(text):
            return places
        # UTF-8: all but the first byte of a character begin with the bits 10.
        is_first = np.frombuffer(written, np.uint8) & 0xC0 != 0x80
        of_byte = np.cumsum(is_first) - 1
        return np.stack([of_byte[places[:, 0]], of_byte[ends - 1] + 1], axis=1)


def _alphabet() -> dict[int, int]:
    """The characters that byte-level vocabularies write bytes as -> the bytes.

    Bytes that can be seen as Latin-1 are written as themselves, the others by the
    characters from U+0100 on; as in the code of GPT-2,
    https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = sorted(set(range(0x100)) - set(seen))
    return {**{b: b for b in seen}, **{0x100 + n: b for n, b in enumerate(unseen)}}


# What `str.translate` makes Latin-1 of; other characters of Latin-1 become none of it.
_ALPHABET = dict.fromkeys(range(0x100), 0xFFFF) | _alphabet()


def _by_bytes(token: str) -> bytes:
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8", "surrogatepass")


def _by_marks(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode(
        "utf-8", "surrogatepass"
    )


# How vocabularies write bytes: as letters of their own, or as SentencePiece does, where
# a space is an underline and a byte without a character is `<0x0A>`.
SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "bytes": _by_bytes,
    "marks": _by_marks,
}

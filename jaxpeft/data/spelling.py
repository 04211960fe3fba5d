"""Where tokens stand in a text, by what each of them spells."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Places = tuple[np.ndarray, np.ndarray] | None


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
        self, texts: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[Places]:
        """The characters that each token covers, for texts of which many are one call.

        Args:
            texts: what was encoded.
            ids: the tokens of each.

        Returns:
            For each text the first character of each token, and one past its last, both
                (length,) int64; None if its tokens spell another text. A character of
                several tokens belongs to each of them.
        """
        flat = list(itertools.chain.from_iterable(ids))
        written = "".join(texts).encode("utf-8", errors="surrogatepass")
        counts = np.cumsum(list(map(len, ids)), dtype=np.int64)
        sizes = self._lengths[np.array(flat, np.int64)]
        ends = np.cumsum(sizes)
        ends_of = np.append(0, ends)[counts]
        if (
            not sizes.all()
            or not np.array_equal(ends_of, np.cumsum(list(map(_size, texts))))
            or b"".join(map(self._bytes.__getitem__, flat)) != written
        ):
            if len(texts) == 1:
                return [None]
            pairs = zip(texts, ids, strict=True)
            return [self.places([text], [own])[0] for text, own in pairs]
        starts = ends - sizes
        if len(written) != sum(map(len, texts)):
            # UTF-8: all but the first byte of a character begin with the bits 10.
            is_first = np.frombuffer(written, np.uint8) & 0xC0 != 0x80
            of_byte = np.cumsum(is_first) - 1
            starts, ends = of_byte[starts], of_byte[ends - 1] + 1
        made: list[Places] = []
        first = before = 0
        for text, stop in zip(texts, counts.tolist(), strict=True):
            made.append((starts[first:stop] - before, ends[first:stop] - before))
            first, before = stop, before + len(text)
        return made


def _size(text: str) -> int:
    """Bytes of a text."""
    if text.isascii():
        return len(text)
    return len(text.encode("utf-8", errors="surrogatepass"))


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

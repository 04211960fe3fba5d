"""Examples for a person's eyes: whole characters, and nothing that a terminal obeys."""

import unicodedata

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from jaxpeft.data.examples import gather
from jaxpeft.data.render import Example
from jaxpeft.data.shown import in_short, pieces, visible

from .conftest import one, talk

TEXT = "Ünïcödé 日本語 🙂👩‍🚀 \ufffd end"


@pytest.fixture(scope="module")
def with_bytes():
    """As Llama 2's: metaspace, and bytes for what has no token."""
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens([AddedToken("<s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def test_pieces_are_the_characters_that_the_offsets_name(tokenizer):
    encoded = tokenizer(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    found = pieces(ids, np.zeros(len(ids), bool), tokenizer)
    assert [i for piece in found for i in piece.ids] == ids
    at = 0
    for piece in found:
        own = offsets[at : at + len(piece.ids)]
        assert TEXT[own[0][0] : own[-1][1]] == piece.text
        at += len(piece.ids)
    assert any(len(piece.ids) > 1 for piece in found)  # characters of several tokens


def test_bytes_and_leading_spaces_join_as_the_tokenizer_joins_them(with_bytes):
    ids = with_bytes("é word 🙂 <s> end").input_ids
    found = pieces(ids, np.zeros(len(ids), bool), with_bytes)
    assert "".join(piece.text for piece in found) == with_bytes.decode(ids)
    assert [p.text for p in found if len(p.ids) > 1] == ["é", "🙂"]
    assert [piece.text for piece in found if piece.special] == ["<s>"]


def test_broken_bytes_end_somewhere(tokenizer):
    (byte,) = tokenizer("é", add_special_tokens=False).input_ids[:1]
    ids = [byte] * 40
    found = pieces(ids, np.zeros(40, bool), tokenizer)
    assert [i for piece in found for i in piece.ids] == ids
    assert max(len(piece.ids) for piece in found) <= 4


def test_what_is_learned_and_what_is_special_is_known(tokenizer):
    example = one(talk("q", "an answer"), tokenizer)
    found = pieces(example.tokens, example.supervised, tokenizer)
    learned = "".join(piece.text for piece in found if piece.learned)
    assert learned == "an answer<|im_end|>"
    special = [piece.text for piece in found if piece.special]
    marks = ["<|im_start|>", "<|im_end|>"]
    assert special == ["<|bos|>", *marks, *marks]


@pytest.mark.slow
def test_nothing_reaches_the_terminal_that_it_would_obey():
    everything = "".join(map(chr, range(0x110000)))
    shown = visible(everything)
    assert {
        c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
    } == {"\n"}
    joiners = {"\u200c", "\u200d"}
    hidden = {c for c in shown if unicodedata.category(c) == "Cf"}
    assert joiners <= hidden and "\u202e" not in hidden and "\ufeff" not in hidden
    assert visible("a\x1b[31mb\r\n\x7f\u202ec") == "a␛[31mb␍↵\n␡<U+202E>c"
    assert visible(TEXT) == TEXT


def test_an_example_in_a_line(tokenizer):
    nothing = Example(np.zeros(3, np.int32), np.zeros(3, bool), 0)
    talked = one(talk("word\n" * 200, "yes\x1b " * 90), tokenizer)
    line = in_short(gather([("a", 1.0, [nothing, talked])]), tokenizer)
    assert line.startswith("<|bos|><|im_start|>user↵word↵word") and "\n" not in line
    assert " ... " in line and "⟦yes␛ yes␛" in line and "<|im_end|>⟧↵" in line
    assert len(line) < 300
    assert in_short(gather([("a", 1.0, [nothing])]), tokenizer) == ""

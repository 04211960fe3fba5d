"""Tokens and their places are the tokenizer's own, whichever way they are got."""

import random

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from jaxpeft.data.encoder import Encoder, whole_places

SPECIAL = ["<|im_start|>", "<|im_end|>"]
WORDS = [
    *["the", " rain", " in", "Spain", "  stays ", "\n\n", "\t", "    ", "naïve", "été"],
    *[
        "漢字",
        "かな",
        "🙂",
        "👩‍👩‍👧",
        "e\u0301",
        "\u00a0",
        "x=1;",
        "Ġ",
        "▁",
        "<0x0A>",
        "1984",
    ],
    *[*SPECIAL, " <|im_end|> ", "\r\n", "İ", "ﬁ", "…", "\u200b"],
]


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    made = ["".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]
    return ["", " ", *made]


def byte_level(**more) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **more)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(made, trainers.BpeTrainer, initial_alphabet=alphabet)


def gemma_kind() -> Tokenizer:
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.ByteFallback()
    return trained(made, trainers.BpeTrainer, limit_alphabet=30)


def llama_2_kind() -> Tokenizer:
    made = gemma_kind()
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


def bert_kind() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(made, trainers.WordPieceTrainer)


def composed() -> Tokenizer:
    made = byte_level()
    made.normalizer = normalizers.NFC()
    return made


def trained(tokenizer: Tokenizer, trainer, **more) -> Tokenizer:
    byte_names = [f"<0x{n:02X}>" for n in range(256)]
    is_fallback = getattr(tokenizer.model, "byte_fallback", False)
    special = ["<unk>", *(byte_names if is_fallback else [])]
    tokenizer.train_from_iterator(
        texts(300),
        trainer(vocab_size=700, special_tokens=special, show_progress=False, **more),
    )
    tokenizer.add_special_tokens([SPECIAL[0]])
    tokenizer.add_special_tokens([AddedToken(SPECIAL[1], rstrip=True)])
    return tokenizer


KINDS = {
    "byte level": byte_level,
    "byte level, spaces in offsets": lambda: byte_level(trim_offsets=False),
    "Gemma's": gemma_kind,
    "Llama 2's": llama_2_kind,
    "BERT's": bert_kind,
    "composed first": composed,
}


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_are_encoded_as_the_tokenizer_encodes_each(kind):
    behind = KINDS[kind]()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=behind))
    given = texts(400)
    # Of the first texts, by which a way is chosen, none is what it fails at.
    encoded = encoder.encode(["rain", "the rain"] * 5 + given, places=True)[10:]
    for text, one in zip(given, encoded, strict=True):
        known = behind.encode(text, add_special_tokens=False)
        assert one.tokens.tolist() == known.ids
        offsets = np.array(known.offsets, np.int64).reshape(-1, 2)
        assert one.places is not None
        for own, its in zip(one.places, whole_places(offsets), strict=True):
            assert own.tolist() == its.tolist()
    without = encoder.encode(given, places=False)
    assert [o.tokens.tolist() for o in without] == [o.tokens.tolist() for o in encoded]


@pytest.mark.parametrize("kind", [byte_level, gemma_kind])
def test_a_vocabulary_of_bytes_says_itself_where_tokens_stand(kind):
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=kind()))
    encoder.encode(["the rain"] * 10 + texts(400), places=True)
    assert encoder._spelling is not None

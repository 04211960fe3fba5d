"""Text in pieces against the same tokens decoded at once, for all kinds of decoder."""

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

from jaxpeft import hf
from jaxpeft.generate.text_stream import MOST, TextStream

TEXTS = {
    "words": "It rains in Hamburg, and then some more. " * 12,
    "characters": "Grüße, 你好 👩‍👩‍👧 naïve 🌧️🌧️ end",
    "long_run": "🌧" * 40 + " done",
    "lines": "one\n\n  two\n\tthree ",
}


@pytest.fixture(scope="module")
def byte_level(asset_model):
    return hf.load_tokenizer(asset_model)


@pytest.fixture(scope="module")
def byte_fallback():
    """As Llama 2's: a leading space that decoding drops, and bytes for what is left."""
    pieces = [*"▁abcdefghijklmnopqrstuvwxyzHIG,.", "▁the", "▁and"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", *bytes_, *pieces])}
    made = tokenizers.Tokenizer(
        models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_the_pieces_make_up_the_whole(kind, name, request):
    tokenizer = request.getfixturevalue(kind)
    tokens = tokenizer(TEXTS[name], add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokens]
    assert not any("\ufffd" in piece for piece in pieces)
    whole = tokenizer.decode(tokens)
    assert whole == TEXTS[name]
    assert "".join(pieces) + stream.end() == whole
    said = [piece for piece in pieces if piece]
    assert len(said) > 5 and max(map(len, said)) < 20  # as it comes, not all at last


def test_more_than_is_kept_was_pushed(byte_fallback):
    assert len(byte_fallback(TEXTS["words"])["input_ids"]) > 2 * MOST
    assert len(byte_fallback(TEXTS["long_run"])["input_ids"]) > 2 * MOST


def test_what_stays_unfinished_is_said_at_the_end(byte_level):
    tokens = byte_level("rain 🌧", add_special_tokens=False)["input_ids"][:-1]
    stream = TextStream(byte_level)
    assert "".join(map(stream.push, tokens)) == "rain "
    assert "rain " + stream.end() == byte_level.decode(tokens)
    assert stream.end().startswith("\ufffd")


def test_special_tokens_are_not_said(byte_level):
    tokens = byte_level("<|im_start|>sun<|im_end|>")["input_ids"]
    stream = TextStream(byte_level)
    assert "".join(map(stream.push, tokens)) + stream.end() == "sun"

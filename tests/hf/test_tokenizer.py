"""Tokenizers as AutoTokenizer gives them, without torch, code or network."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import transformers

from jaxpeft import hf
from jaxpeft.errors import InputError

TEXTS = ["Hello world", "  two  spaces\n", "<s>ünïcödé</s>"]


@pytest.fixture
def folder(tmp_path):
    """A byte-level tokenizer beside the config of a Llama."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(["hello world and hello again"] * 9, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


@pytest.mark.parametrize(
    "kind",
    [
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "GPT2Tokenizer",
        None,
    ],
)
def test_the_tokenizer_is_that_of_auto_tokenizer(folder, kind):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": kind}
    if kind is None:
        del settings["tokenizer_class"]
    path.write_text(json.dumps(settings))
    ours = hf.load_tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs) and ours.eos_token_id == theirs.eos_token_id
    for text in TEXTS:
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_a_llama_2_tokenizer_loads(tmp_path):
    words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab", "ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    vocab = {word: i for i, word in enumerate(words)}
    made = transformers.LlamaTokenizer(vocab=vocab, merges=merges)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    found = hf.load_tokenizer(tmp_path)
    assert type(found).__name__ == "LlamaTokenizer"
    assert found("ab a").input_ids == made("ab a").input_ids


def test_code_beside_the_tokenizer_is_not_imported(folder):
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for kind in ("PreTrainedTokenizerFast", "EvilTokenizer"):
        settings |= {
            "tokenizer_class": kind,
            "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]},
        }
        path.write_text(json.dumps(settings))
        try:
            hf.load_tokenizer(folder)
        except InputError as error:
            assert kind == "EvilTokenizer" and "cannot be loaded" in str(error)
        assert "evil" not in sys.modules
        assert not (folder / "ran").exists() and not Path("ran").exists()


@pytest.mark.slow
def test_torch_is_not_imported(folder):
    script = (
        "import sys; from jaxpeft import hf; t = hf.load_tokenizer(sys.argv[1]);"
        "t('hello', return_tensors='np'); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_missing_and_damaged_files(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        hf.load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="holds no tokenizer"):
        hf.load_tokenizer(folder)
    with pytest.raises(InputError, match="holds no tokenizer"):
        hf.load_tokenizer(folder / "absent")


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder, cfg):
    tokenizer = hf.load_tokenizer(folder)
    size = len(tokenizer)
    for enough in (size, size + 28):
        hf.check_vocab(tokenizer, dataclasses.replace(cfg, vocab_size=enough))
    small = dataclasses.replace(cfg, vocab_size=size - 1)
    with pytest.raises(InputError, match=f"{size} tokens.*only {size - 1}"):
        hf.check_vocab(tokenizer, small)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match="tokens that were added .*--tokenizer"):
        hf.check_vocab(tokenizer, dataclasses.replace(cfg, vocab_size=size))

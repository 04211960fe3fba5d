"""The chat formats of the models that people tune: text, what is learned, its end.

`published/chats.json` has the special tokens of each: those that the tokenizer names,
those that generation_config.json lists as eos, and the one after an answer. The
templates beside it are written for these tests; they make the turns of these formats
by the means that the published ones use.
"""

import copy
import datetime
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxpeft import hf
from jaxpeft.data import turns
from jaxpeft.data.conversation import Conversation
from jaxpeft.data.render import render
from jaxpeft.data.template import ChatTemplate

FOLDER = Path(__file__).parent / "published"
CHATS = json.loads((FOLDER / "chats.json").read_text(encoding="utf-8"))
# No more than these look like special tokens in a template.
SPECIAL = re.compile(
    r"<\|(?!user|system|assistant)\w+\|>|<[｜]\w+[｜]>|\[/?[A-Z_]{4,}\]|<\w+_of_turn>"
)
ANSWERS = ["Good day.", "Rain in Rome."]
TALK = [
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": ANSWERS[1]},
]
TOLD = [{"role": "system", "content": "Be brief."}, *TALK]
NO_SYSTEM = {"gemma2", "mistral_v1"}


@pytest.fixture(scope="module")
def plain(asset_model):
    return hf.load_tokenizer(asset_model)


@pytest.fixture(params=CHATS)
def chat(request, plain):
    """(name, what its entry says, a tokenizer with its tokens and template)."""
    entry = CHATS[request.param]
    name = entry.get("template", request.param)
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = copy.deepcopy(plain)
    tokens = {*SPECIAL.findall(source), entry["end_of_turn"], *entry["generation"]}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(tokens)})
    for kind in ("bos_token", "eos_token", "pad_token"):
        tokenizer.add_special_tokens({kind: entry[kind]} if entry[kind] else {})
    tokenizer.bos_token = entry["bos_token"]
    tokenizer.chat_template = source
    return name, entry, tokenizer


def text_of(tokenizer, messages, prompt=False):
    template = ChatTemplate(tokenizer)
    (talk,) = template.prepare([Conversation(messages)])
    return template.render([talk], ["here"], prompt=prompt)[0]


@pytest.mark.slow
def test_text_is_that_of_transformers(chat):
    name, entry, tokenizer = chat
    talks = [TALK] if name in NO_SYSTEM else [TALK, TOLD]
    for messages, prompt in [(talk, False) for talk in talks] + [(TALK[:3], True)]:
        expected = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            date_string="26 Jul 2024",
        )
        # Beyond it only the end of an answer that the template ends nowhere.
        expected += "" if prompt else entry.get("closing", "")
        found = text_of(tokenizer, messages, prompt)
        assert undated(found) == undated(expected)


def undated(text):
    """The text without today's date: what is trained on has a fixed one."""
    today = datetime.date.today()
    for form in ("%d %b %Y", "%Y-%m-%d", "%d %B %Y"):
        for day in (today, datetime.date(2024, 7, 26)):
            text = text.replace(day.strftime(form), "DATE")
    return text


def test_answers_are_learned_to_the_end_of_the_turn(chat):
    _, entry, tokenizer = chat
    (example,) = render([Conversation(TALK)], ["here"], tokenizer, max_length=512)
    pieces, learning = [], False
    for token, learned in zip(example.tokens, example.supervised, strict=True):
        if learned and not learning:
            pieces.append([])
        if learned:
            pieces[-1].append(token)
        learning = learned
    wanted = [answer + entry["end_of_turn"] for answer in ANSWERS]
    if entry.get("thinks"):  # the last turn has a thought, if an empty one
        wanted[-1] = "<think>\n\n</think>\n\n" + wanted[-1]
    found = [tokenizer.decode(piece).replace(" </s>", "</s>") for piece in pieces]
    # Whether a header inside a block is learned is for the tests of blocks to say.
    header = entry.get("header", "")
    assert [text.removeprefix(header).strip() for text in found] == wanted


def test_all_that_ends_an_answer_stops_it(chat, tmp_path):
    _, entry, tokenizer = chat
    ids = tokenizer.convert_tokens_to_ids(entry["generation"])
    stored = ids if len(ids) > 1 else ids[0]
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": stored})
    )
    names = {*entry["generation"], entry["eos_token"], entry["end_of_turn"]}
    expected = sorted(set(tokenizer.convert_tokens_to_ids(sorted(names))))
    assert hf.stop_ids(tmp_path, tokenizer) == expected


def test_every_template_has_an_entry():
    used = {entry.get("template", name) for name, entry in CHATS.items()}
    assert {path.stem for path in FOLDER.glob("*.jinja")} == used


# model_type and the fields of tokenizer_config.json beside the three tokens and the
# template, as Llama 2, Llama 3, Qwen, SmolLM2, Phi-3, Mistral, Hermes and others have.
SETTINGS = {
    "llama 2": ("llama", {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "llama 3": ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "qwen": (
        "qwen2",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "errors": "replace",
            "split_special_tokens": False,
        },
    ),
    "smollm2": ("llama", {"tokenizer_class": "GPT2Tokenizer", "vocab_size": 49152}),
    "phi 3": ("phi3", {"tokenizer_class": "LlamaTokenizer", "sp_model_kwargs": {}}),
    "mistral": ("mistral", {"tokenizer_class": "LlamaTokenizer"}),
    "smollm3": ("smollm3", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "several templates": ("llama", {"chat_template": ["default", "tool_use"]}),
    "tokens as objects": (
        "llama",
        {"bos_token": {"__type": "AddedToken", "content": "<|bos|>", "lstrip": False}},
    ),
    "code of its own": ("qwen2", {"auto_map": {"AutoTokenizer": ["code.Own", None]}}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_tokenizer_s_settings(name, plain, asset_model, tmp_path):
    kind, fields = SETTINGS[name]
    fields = {"chat_template": plain.chat_template, **fields}
    if isinstance(fields["chat_template"], list):
        fields["chat_template"] = [
            {"name": each, "template": plain.chat_template}
            for each in fields["chat_template"]
        ]
    settings = {
        "bos_token": "<|bos|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | fields))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    shutil.copy(asset_model / "tokenizer.json", tmp_path)
    tokenizer = hf.load_tokenizer(tmp_path)
    text = "Hello there<|im_end|> in Rome"
    assert tokenizer(text)["input_ids"] == plain(text)["input_ids"]
    assert hf.stop_ids(tmp_path, tokenizer) == [plain.eos_token_id]


def test_many_turns_are_found_as_few_are(chat, monkeypatch):
    """By rendering a few beginnings in place of all of them."""
    _, _, tokenizer = chat
    said = [f"{'question' if n % 2 == 0 else 'answer'} {n}" for n in range(26)]
    roles = ["user", "assistant"] * 13
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
    found = []
    for many in (4, 10**9):
        monkeypatch.setattr(turns, "MANY", many)
        (example,) = render([Conversation(messages)], ["r"], tokenizer, max_length=9999)
        found.append(example)
    assert found[0].supervised.any()
    for one, other in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_array_equal(one, other)

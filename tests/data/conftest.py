"""The shipped tokenizer, real-world chat templates, and data files in a temp folder."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from jaxpeft.data.formats import Conversation
from jaxpeft.data.render import render

ASSET = Path(str(resources.files("jaxpeft"))) / "assets" / "tiny-llama"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def load_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSET)


def talk(*contents, system=None):
    """A conversation of these contents, the user first."""
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents)]
    return Conversation(
        ([{"role": "system", "content": system}] if system else []) + turns
    )


def one(item, tokenizer, **kw):
    kw = {"max_length": 4096} | kw
    (example,) = render([item], ["d.json (row 1)"], tokenizer, **kw)
    return example


def learned(item, tokenizer, **kw):
    """The supervised stretches, decoded one by one."""
    (found,) = learned_each([item], tokenizer, **kw)
    return found


def learned_each(items, tokenizer, **kw):
    """Those of several items, which are rendered together."""
    kw = {"max_length": 4096} | kw
    found = []
    for tokens, supervised, *_ in render(items, ["r"] * len(items), tokenizer, **kw):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], supervised, [False]])))
        stretches = zip(edges[::2], edges[1::2])
        found.append([tokenizer.decode(tokens[a:b]) for a, b in stretches])
    return found


@pytest.fixture(scope="session")
def tokenizer():
    """ChatML, end of turn and eos `<|im_end|>`; shared, so never changed."""
    return load_tokenizer()


@pytest.fixture
def tokenizer_with():
    """A tokenizer of the test's own: (template, special tokens to add)."""

    def make(template, *special):
        made = load_tokenizer()
        made.chat_template = template
        made.add_tokens(list(special), special_tokens=True)
        return made

    return make


@pytest.fixture
def write(tmp_path):
    """Write a file (text, bytes, or an object as JSON) and give its path as text."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return make


@pytest.fixture
def shared_data():
    """A file of the shared data, or a skip where it is not there."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in ../shared/data")
        return str(path)

    return find

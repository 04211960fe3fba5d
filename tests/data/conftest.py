"""The shipped tokenizer, real-world chat templates, and data files in a temp folder."""

import json
from importlib import resources
from pathlib import Path

import pytest

ASSET = Path(str(resources.files("jaxpeft"))) / "assets" / "tiny-llama"
SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def load_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSET)


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

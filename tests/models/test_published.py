"""The published config.json of the models that people tune, each opened and compared.

`published/FAMILY.json` has a record for each model: the fields of its file, all of
them, with the sizes (widths, heads, layers, experts, vocabulary, windows) made small. A
record that is `like` another has its fields but those in `without`, and its own
`config` over them. `refused` is how the message begins where a file has to be refused.
`source` says where the fields were found.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from jaxpeft import hf, models
from jaxpeft.errors import InputError

FOLDER = Path(__file__).parent / "published"


def resolved(records):
    """{model: the whole content of its config.json}."""
    contents = {}
    for name, record in records.items():  # what one is like stands before it
        content = dict(contents[record["like"]] if "like" in record else {})
        for field in record.get("without", ()):
            del content[field]
        contents[name] = content | record.get("config", {})
    return contents


RECORDS, CONTENTS = {}, {}
for path in sorted(FOLDER.glob("*.json")):
    records = json.loads(path.read_text(encoding="utf-8"))
    RECORDS |= records
    CONTENTS |= resolved(records)
OPEN = [name for name in RECORDS if "refused" not in RECORDS[name]]


def as_transformers(content):
    return CONFIG_MAPPING[content["model_type"]].from_dict(content)


def computed(cfg):
    """What of a model its logits come from."""
    return dataclasses.replace(cfg, initializer_range=0.0, hf={})


def kind(cfg):
    """The same but for numbers that only scale something, alike in all models."""
    rope = dataclasses.replace(cfg.rope, theta=0.0)
    numbers = {"max_position_embeddings": 0, "rms_norm_eps": 0.0, "rope": rope}
    return dataclasses.replace(computed(cfg), **numbers)


def distinct():
    """The first model of each kind."""
    found = {}
    for name in OPEN:
        with contextlib.suppress(InputError):  # a test of its own fails then
            found.setdefault(kind(models.config(CONTENTS[name])), name)
    return found.values()


def test_every_record_is_of_a_family_and_says_its_source():
    assert {c["model_type"] for c in CONTENTS.values()} <= set(models.FAMILIES)
    assert all(record["source"] for record in RECORDS.values())


def test_the_page_counts_them(root):
    page = (root / "docs" / "published.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    counted = {}
    for _, families, files, opened, *_ in rows:
        names = frozenset(family.strip("` ") for family in families.split(","))
        counted[names] = (int(files), int(opened))
    assert frozenset().union(*counted) == {c["model_type"] for c in CONTENTS.values()}
    for names, numbers in counted.items():
        models_of = [n for n in CONTENTS if CONTENTS[n]["model_type"] in names]
        assert numbers == (len(models_of), sum(name in OPEN for name in models_of))


@pytest.mark.parametrize("name", OPEN)
def test_opens_as_transformers_reads_it(name):
    ours = models.config(CONTENTS[name])
    theirs = models.config(as_transformers(CONTENTS[name]).to_dict())
    assert computed(ours) == computed(theirs)


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in OPEN])
def test_refused_for_what_would_change_the_model(name):
    with pytest.raises(InputError) as caught:
        models.config(CONTENTS[name])
    (problem,) = caught.value.problems
    assert problem.startswith("config.json: " + RECORDS[name]["refused"])


def damaged(content):
    """The content with one field after another, inner ones too, of another kind."""
    for field, value in content.items():
        others = [[], {}, "x", [{}], [[]], -1, 0.5, True, 10**30]
        inner = damaged(value) if isinstance(value, dict) else ()
        for other in (*others, *inner):
            yield {**content, field: other}


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_field_of_another_kind_is_a_problem_in_words(family):
    name = next(n for n in OPEN if CONTENTS[n]["model_type"] == family)
    for content in damaged(CONTENTS[name]):
        try:
            models.config(content)
        except InputError as error:
            assert all(said.startswith("config.json: ") for said in error.problems)


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
def test_logits(name, tmp_path):
    content = {k: v for k, v in CONTENTS[name].items() if k != "quantization_config"}
    # Those of Gemma 3's wrapper leave even the vocabulary to the family's default.
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = as_transformers({**content, **ids, "initializer_range": 0.2})
    # The default gives way to the head that every file of the model has.
    if (
        content["model_type"] == "mistral3"
        and not models.config(content).tie_word_embeddings
    ):
        config.tie_word_embeddings = False
    text = config.get_text_config()
    text.vocab_size, text.initializer_range = min(text.vocab_size, 64), 0.2
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    whole = "vision_config" in content
    auto = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    # The file is the published one; its weights are those of the small model.
    cfg = models.config(content).with_rows(text.vocab_size)
    params = hf.load(tmp_path, cfg, dtype="float32")
    tokens = np.random.default_rng(0).integers(1, 64, (1, 13))
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    with jax.disable_jit():  # small: programs would take longer than they save
        found = models.forward(params, tokens, cfg)
    assert np.std(expected) > 0.05  # else a small difference says nothing
    assert np.abs(expected - found).max() < 1e-4

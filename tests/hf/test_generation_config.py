"""generation_config.json: read as transformers reads it, or refused by name."""

import json
import shutil

import pytest
import transformers
from transformers.generation import logits_process as theirs

from jaxpeft import hf
from jaxpeft.errors import InputError
from jaxpeft.models.sampling import Sampling


@pytest.fixture
def folder(tmp_path, asset_model):
    for name in ("config.json", "chat_template.jinja", "tokenizer.json"):
        shutil.copy(asset_model / name, tmp_path / name)
    shutil.copy(asset_model / "tokenizer_config.json", tmp_path)
    return tmp_path


def stops(folder, content):
    (folder / "generation_config.json").write_text(json.dumps(content))
    return hf.stop_ids(folder, hf.load_tokenizer(folder))


def test_an_answer_ends_at_any_end_token_that_is_named(folder):
    # 4 is <|im_end|>, the tokenizer's eos and what the template ends a turn with.
    assert stops(folder, {"eos_token_id": [2, 9]}) == [2, 4, 9]
    assert stops(folder, {"eos_token_id": 3}) == [3, 4]
    assert stops(folder, {}) == [4]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [2, 4]),  # the file's own: ChatML
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", [2]),
        ("{{ raise_exception('no') }}", [2]),
    ],
    ids=["chatml", "no_end", "refuses"],
)
def test_the_template_s_end_of_turn_counts_though_eos_is_another(
    template, expected, folder
):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"eos_token": "<|eos|>"}
    path.write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    assert stops(folder, {}) == expected


@pytest.mark.parametrize(
    "content",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
        {"do_sample": True, "top_k": 0, "repetition_penalty": 1.05},
    ],
    ids=str,
)
def test_the_settings_are_those_that_transformers_makes_processors_of(
    content, folder, make_torch
):
    (folder / "generation_config.json").write_text(json.dumps(content))
    model, config = make_torch(), transformers.GenerationConfig.from_pretrained(folder)
    config, _ = model._prepare_generation_config(config)
    model._prepare_special_tokens(config, True)
    made = model._get_logits_processor(config, input_ids_seq_length=1)
    found, expected = hf.sampling(folder), Sampling(temperature=1.0)
    values = {
        theirs.TemperatureLogitsWarper: ("temperature", "temperature"),
        theirs.TopKLogitsWarper: ("top_k", "top_k"),
        theirs.TopPLogitsWarper: ("top_p", "top_p"),
        theirs.RepetitionPenaltyLogitsProcessor: ("penalty", "repetition_penalty"),
    }
    settings = vars(expected) | {
        ours: getattr(processor, name)
        for processor in made
        for name, ours in [values[type(processor)]]
    }
    assert found == Sampling(**settings)


def test_without_do_sample_it_is_greedy(folder):
    content = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert hf.sampling(folder) == Sampling(repetition_penalty=1.1)
    (folder / "generation_config.json").unlink()
    assert hf.sampling(folder) == Sampling()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"do_sample": true, "min_p": 0.05}', "min_p: found 0.05, which is not"),
        ('{"top_k": "20"}', "top_k: found '20', which is no number"),
        ('{"temperature": true}', "temperature: found True"),
        ('{"do_sample": "yes"}', "do_sample: found 'yes'; write true or false"),
        ("{", "not valid JSON"),
        ("[]", "found list, expected an object"),
    ],
)
def test_what_cannot_be_followed_is_named(text, words, folder):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        hf.sampling(folder)
    assert "generation_config.json: " in str(caught.value)

"""Generation against transformers' `generate`, and sampling against the softmax."""

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import hf, models
from jaxpeft.errors import InputError
from jaxpeft.generate import crossing
from jaxpeft.generate.generation import generate
from jaxpeft.generate.steps import advance
from jaxpeft.models.sampling import Sampling

# Of answers without near ties, which rounding could turn.
PROMPTS = [[10, 11, 12], [20], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
NEW = 16


def continued(model, prompt, new=NEW, **settings):
    """What transformers answers to one prompt."""
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        whole = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
            **settings,
        )
    return whole[0, len(prompt) :].tolist()


def answers(llama, prompts, max_new_tokens=NEW, stop=(), first_request=0, **settings):
    return generate(
        llama.params,
        llama.cfg,
        prompts,
        max_new_tokens=max_new_tokens,
        stop=stop,
        first_request=first_request,
        sampling=Sampling(**settings),
    )


@pytest.fixture(scope="module")
def greedy(llama):
    return answers(llama, PROMPTS)


@pytest.mark.slow
def test_greedy_is_transformers(llama, greedy):
    assert [len(answer) for answer in greedy] == [NEW] * 3
    assert greedy == [continued(llama.torch, prompt) for prompt in PROMPTS]


def test_prompts_of_a_batch_do_not_disturb_each_other(llama, greedy):
    assert [answers(llama, [prompt])[0] for prompt in PROMPTS] == greedy


def test_an_answer_ends_before_its_stop_token(llama, greedy):
    stop = greedy[0][4]
    expected = [a[: a.index(stop)] if stop in a else a for a in greedy]
    assert len(expected[0]) == 4
    assert answers(llama, PROMPTS, stop=[stop]) == expected
    there = continued(llama.torch, PROMPTS[0], eos_token_id=stop)
    assert there == [*expected[0], stop]


def test_an_answer_ends_where_its_tokens_are_said_to_end_it(llama, monkeypatch):
    """Asked after every few tokens; the others go on as if nothing were."""
    monkeypatch.setattr(crossing, "PART", 3)
    new = 8  # two parts and a shorter one
    alone = answers(llama, PROMPTS, max_new_tokens=new)

    def ended(tokens):
        return tokens[:4] == alone[1][:4]

    settings = {"max_new_tokens": new, "stop": (), "ended": ended}
    found = generate(llama.params, llama.cfg, PROMPTS, **settings)
    assert found == [alone[0], alone[1][:6], alone[2]]
    settings["ended"] = lambda tokens: True
    found = generate(llama.params, llama.cfg, PROMPTS, **settings)
    assert found == [answer[:3] for answer in alone]


def test_any_of_several_stop_tokens_ends_it(llama, greedy):
    stops = [greedy[2][0], greedy[0][3]]
    found = answers(llama, PROMPTS, stop=stops)
    assert found[2] == []
    assert all(not set(answer) & set(stops) for answer in found)
    assert all(a == b[: len(a)] for a, b in zip(found, greedy))


@pytest.mark.slow
def test_the_shipped_model_answers_as_in_transformers(asset_model):
    cfg = models.config(asset_model)
    params = hf.load(asset_model, cfg, "float32")
    there = transformers.LlamaForCausalLM.from_pretrained(
        asset_model, dtype=torch.float32
    )
    tokenizer = hf.load_tokenizer(asset_model)
    stops = hf.stop_ids(asset_model, tokenizer)
    turns = [{"role": "user", "content": "Describe the weather: rain, 8 degrees."}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    (found,) = generate(params, cfg, [prompt], max_new_tokens=24, stop=stops)
    expected = continued(there, prompt, 24, eos_token_id=stops)
    assert len(found) > 3
    assert found == [token for token in expected if token not in stops]


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_greedy_with_a_repetition_penalty_is_transformers(penalty, llama, greedy):
    found = answers(llama, PROMPTS, repetition_penalty=penalty)
    assert found != greedy
    there = [continued(llama.torch, p, repetition_penalty=penalty) for p in PROMPTS]
    assert found == there


def sampled(llama, prompts=PROMPTS, **settings):
    return answers(llama, prompts, **{"temperature": 1.0, **settings})


def test_samples_repeat_by_seed(llama, greedy):
    one, same, other = (sampled(llama, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other and one != greedy


@pytest.mark.slow
def test_a_tiny_nucleus_or_temperature_is_greedy(llama, greedy):
    assert sampled(llama, top_p=1e-6) == greedy
    assert sampled(llama, temperature=1e-4) == greedy


@pytest.mark.slow
def test_one_of_one_is_greedy(llama, greedy):
    assert sampled(llama, top_k=1) == greedy


@pytest.mark.slow
def test_what_is_drawn_for_a_request_does_not_depend_on_its_batch(llama):
    together = sampled(llama, seed=5, top_k=20)
    alone = [
        sampled(llama, [prompt], seed=5, top_k=20, first_request=number)[0]
        for number, prompt in enumerate(PROMPTS)
    ]
    assert alone == together


def test_other_settings_need_no_other_program(llama):
    sampled(llama, top_k=5, top_p=0.9, repetition_penalty=1.1)
    before = advance._cache_size()
    sampled(llama, top_k=7, top_p=0.8, repetition_penalty=1.2, temperature=0.5, seed=3)
    assert advance._cache_size() == before


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.slow
def test_samples_follow_the_softmax_of_the_nucleus(top_p, llama):
    draws, temperature = 1500, 0.8
    logits = jax.jit(models.forward, static_argnums=2)(
        llama.params, np.array([PROMPTS[0]]), llama.cfg
    )[0, -1]
    p = np.exp(np.asarray(logits, np.float64) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros_like(p)
    kept[order[before < top_p]] = p[order[before < top_p]]
    kept /= kept.sum()
    settings = {"temperature": temperature, "top_p": top_p, "max_new_tokens": 1}
    drawn = sampled(llama, [PROMPTS[0]] * draws, **settings)
    share = np.bincount(np.ravel(drawn), minlength=61) / draws
    assert not share[kept == 0].any()
    deviation = np.sqrt(kept * (1 - kept) / draws)
    assert np.all(np.abs(share - kept) <= 5 * deviation + 1e-3)


MISTAKES = {
    "no prompt": ({"prompts": []}, "prompt: it is empty"),
    "an empty prompt": ({"prompts": [[1], []]}, "prompt: it is empty"),
    "no tokens": ({"max_new_tokens": 0}, "max-new-tokens: found 0"),
    "too long": ({"max_new_tokens": 120}, "context of 128"),
    "temperature": ({"temperature": -0.5}, "temperature: found -0.5"),
    "nucleus": ({"top_p": 0.0}, "top-p: found 0.0"),
    "nucleus above": ({"top_p": 1.5}, "top-p: found 1.5"),
    "not a number": ({"temperature": float("nan")}, "temperature: found nan"),
    "top_k": ({"top_k": -3}, "top-k: found -3; it must be 1 or more"),
    "penalty": ({"repetition_penalty": 0.0}, "repetition-penalty: found 0.0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name, llama):
    settings, message = MISTAKES[name]
    with pytest.raises(InputError, match=message):
        answers(llama, **{"prompts": PROMPTS, **settings})


def test_mistakes_are_listed_together(llama):
    with pytest.raises(InputError) as caught:
        answers(llama, [[]], temperature=-1.0, top_p=2.0, max_new_tokens=0)
    assert len(caught.value.problems) == 4

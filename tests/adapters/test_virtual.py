"""Virtual tokens: generation, packing, and what they refuse."""

import jax
import numpy as np
import pytest

from jaxpeft import adapters, models
from jaxpeft.errors import InputError
from jaxpeft.generate.continuation import Continuation
from jaxpeft.generate.generation import generate
from jaxpeft.models.sampling import Sampling

METHODS = ["prompt_tuning", "prefix_tuning"]
TOKENS = np.random.default_rng(0).integers(1, 61, (1, 20)).astype(np.int32)


@pytest.fixture(scope="module", params=METHODS)
def params(request, llama):
    rules = {"method": request.param, "num_virtual_tokens": 5}
    return adapters.inject(llama.params, rules, jax.random.key(0))


@pytest.mark.slow
def test_generation_is_what_the_whole_sequence_says(params, llama):
    prompts = [TOKENS[0, :4].tolist(), TOKENS[0, 4:15].tolist()]
    found = generate(params, llama.cfg, prompts, max_new_tokens=8, stop=[])
    forward = jax.jit(models.forward, static_argnums=2)
    for prompt, answer in zip(prompts, found, strict=True):
        # Beyond the prompt the model is asked about its own answer at once.
        whole = np.array([prompt + answer], np.int32)
        logits = forward(params, whole, llama.cfg)
        expected = np.argmax(logits, axis=-1)[0, len(prompt) - 1 : -1]
        assert answer == expected.tolist()
    # Token by token, from a cache that is kept between answers.
    kept = Continuation(params, llama.cfg, [], Sampling())
    again = [list(kept.answer(prompt, 8)) for prompt in (prompts[0], prompts[1])]
    assert again == found
    bare = generate(llama.params, llama.cfg, prompts, max_new_tokens=8, stop=[])
    assert bare != found


@pytest.mark.slow
def test_packed_examples_share_them(params, llama):
    spans = np.split(np.arange(20), [6, 13])
    segments, positions = np.zeros_like(TOKENS), np.zeros_like(TOKENS)
    for number, span in enumerate(spans, 1):
        segments[0, span], positions[0, span] = number, np.arange(len(span))
    packed = models.forward(
        params, TOKENS, llama.cfg, segments=segments, positions=positions
    )
    for span in spans:
        alone = models.forward(params, TOKENS[:, span], llama.cfg)
        np.testing.assert_allclose(packed[:, span], alone, atol=1e-5)


def test_merging_is_refused(params):
    with pytest.raises(InputError, match="virtual tokens, which cannot be merged"):
        adapters.merge(params)


@pytest.mark.parametrize("method", METHODS)
def test_none_at_all_are_refused(method, llama):
    rules = {"method": method, "num_virtual_tokens": 0}
    with pytest.raises(InputError, match="num_virtual_tokens: found 0"):
        adapters.inject(llama.params, rules, jax.random.key(0))


def test_a_prompt_begins_with_rows_of_the_embedding(llama):
    rules = {"method": "prompt_tuning", "num_virtual_tokens": 7}
    params = adapters.inject(llama.params, rules, jax.random.key(0))
    table = np.asarray(llama.params["model"]["embed_tokens"]["embedding"])
    for row in np.asarray(params["model"]["prompt"]["tokens"].weight):
        assert (table == row).all(axis=1).any()

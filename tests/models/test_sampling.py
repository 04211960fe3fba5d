"""The warpers against transformers' own, and the choice between what they leave."""

import jax
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from jaxpeft.models.sampling import Sampling, choose, process

VOCAB = 53
LOGITS = np.random.default_rng(0).normal(0, 2, (3, VOCAB)).astype(np.float32)
TOKENS = np.array([[1, 2, 2, 40], [7, 8, 9, 10], [52, 0, 0, 0]])
SEEN = np.zeros((3, VOCAB), bool)
np.put_along_axis(SEEN, TOKENS, True, 1)

# In the order in which transformers applies them.
PROCESSORS = {
    "repetition_penalty": theirs.RepetitionPenaltyLogitsProcessor,
    "temperature": theirs.TemperatureLogitsWarper,
    "top_k": theirs.TopKLogitsWarper,
    "top_p": theirs.TopPLogitsWarper,
}
CASES = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 1000},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "repetition_penalty": 1.5},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
    {"temperature": 1.8, "top_k": 7, "top_p": 0.95, "repetition_penalty": 1.05},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_warped_logits_are_those_of_transformers(settings):
    expected = torch.tensor(LOGITS)
    for name, processor in PROCESSORS.items():
        if name in settings:
            expected = processor(settings[name])(torch.tensor(TOKENS), expected)
    found = np.asarray(jax.jit(process)(LOGITS, SEEN, Sampling(**settings).warpers()))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected.numpy()))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    probabilities = jax.nn.softmax(found, axis=-1)
    np.testing.assert_allclose(probabilities, expected.softmax(-1).numpy(), atol=1e-6)


def test_greedy_takes_the_largest_and_has_no_warpers_but_the_penalty():
    warpers = Sampling(top_k=3, top_p=0.5, seed=2).warpers()
    assert jax.tree.leaves(warpers) == []
    found = choose(LOGITS, None, warpers, np.arange(3), 0)
    np.testing.assert_array_equal(found, LOGITS.argmax(-1))
    penalised = Sampling(repetition_penalty=2.0).warpers()
    assert jax.tree.leaves(penalised) == [2.0]


def test_a_draw_is_one_of_what_is_left():
    warpers = Sampling(temperature=3.0, top_k=4).warpers()
    draw = jax.jit(jax.vmap(choose, (None, None, None, None, 0)))
    drawn = np.asarray(draw(LOGITS, None, warpers, np.arange(3), np.arange(200)))
    for row, logits in enumerate(LOGITS):
        assert set(drawn[:, row]) == set(np.argsort(-logits)[:4])

"""What `sft` can minimise: beside transformers' and torch's own functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import config, models, objectives
from jaxpeft.errors import InputError
from jaxpeft.models.noise import Noise
from jaxpeft.objectives import OBJECTIVES, chunks, sft, token_loss

BATCH, SEQ, WIDTH, VOCAB = 3, 7, 8, 29
RNG = np.random.default_rng(0)
HIDDEN: Any = RNG.normal(size=(BATCH, SEQ, WIDTH)).astype(np.float32)
HEAD: Any = RNG.normal(size=(WIDTH, VOCAB)).astype(np.float32)
TARGETS: Any = RNG.integers(0, VOCAB, (BATCH, SEQ)).astype(np.int32)
SUPERVISED: Any = RNG.random((BATCH, SEQ)) < 0.6
WEIGHTS: Any = RNG.choice([0.0, 0.25, 1.0, 2.5], (BATCH, SEQ)).astype(np.float32)
MICRO = {"targets": TARGETS, "supervised": SUPERVISED}


def in_torch(of_logits):
    """A loss of torch's and its gradients by the hidden states and the head."""
    import torch

    hidden, head = (torch.tensor(x, requires_grad=True) for x in (HIDDEN, HEAD))
    labels = torch.tensor(np.where(SUPERVISED, TARGETS, -100)).long()
    loss = of_logits(hidden @ head, labels)
    slopes = torch.autograd.grad(loss, (hidden, head))
    return float(loss.detach()), *(slope.numpy() for slope in slopes)


def smoothed(logits, labels):
    from transformers.trainer_pt_utils import LabelSmoother

    return LabelSmoother(epsilon=0.1)({"logits": logits}, labels)


def per_token(logits, labels):
    """(log-probability of each target, whether it counts), of torch."""
    logs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return logs, labels != -100


def dynamic(logits, labels):
    logs, counts = per_token(logits, labels)
    return -(logs.exp().detach() * logs)[counts].sum() / counts.sum()


def weighted(logits, labels):
    import torch

    logs, counts = per_token(logits, labels)
    weights = torch.tensor(WEIGHTS) * counts
    return -(weights * logs).sum() / weights.sum()


CASES = {
    "label_smoothing": ({"label_smoothing": 0.1}, MICRO, smoothed),
    "dft": ({"loss_type": "dft"}, MICRO, dynamic),
    "weights": ({}, {**MICRO, "weights": WEIGHTS}, weighted),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_the_references(name, monkeypatch):
    settings, micro, reference = CASES[name]
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", 2 * BATCH * VOCAB)
    of_hidden: Any = sft(**settings).from_hidden

    def mean(hidden, head):
        loss = of_hidden(hidden, head, micro)
        return loss.total / loss.weight

    value, grads = jax.jit(jax.value_and_grad(mean, argnums=(0, 1)))(HIDDEN, HEAD)
    alone = jax.jit(mean)(HIDDEN, HEAD)  # without a gradient it goes another way
    expected, *slopes = in_torch(reference)
    np.testing.assert_allclose([value, alone], expected, rtol=2e-6)
    for found, slope in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(found, slope, atol=2e-7, rtol=2e-5)


def test_smoothing_and_weights_go_together():
    form = token_loss.Form(label_smoothing=0.2)
    logs = jax.nn.log_softmax(HIDDEN @ HEAD)
    at_target = jnp.take_along_axis(logs, TARGETS[..., None], -1)[..., 0]
    each = -0.8 * at_target - 0.2 * jnp.mean(logs, -1)
    expected = jnp.sum(each * WEIGHTS * SUPERVISED)
    found: Any = token_loss.nll_sum(HIDDEN, HEAD, TARGETS, SUPERVISED, WEIGHTS, form)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_an_evaluation_weighs_tokens_and_counts_them():
    sums = token_loss.token_sums(HIDDEN, HEAD, TARGETS, SUPERVISED, WEIGHTS)
    hits = (HIDDEN @ HEAD).argmax(-1) == TARGETS
    mass = (WEIGHTS * SUPERVISED).sum()
    report = objectives.sft().report(tuple(map(float, sums)))
    np.testing.assert_allclose(report["eval_loss"], in_torch(weighted)[0], rtol=2e-6)
    assert report["eval_accuracy"] == pytest.approx(
        (hits * WEIGHTS * SUPERVISED).sum() / mass
    )
    assert report["eval_tokens"] == SUPERVISED.sum()


def test_noise_is_as_large_as_that_of_transformers():
    import torch
    from transformers.integrations.neftune import neftune_post_forward_hook

    module = torch.nn.Embedding(5, 64)
    shape = (4, 32, 64)
    setattr(module, "neftune_noise_alpha", 5.0)  # noqa: B010 - as transformers does
    zeros = torch.zeros(shape)
    theirs = neftune_post_forward_hook(module, None, zeros).numpy()
    ours = np.asarray(Noise(jax.random.key(0), 5.0).added_to(jnp.zeros(shape)))
    bound = 5.0 / np.sqrt(32 * 64)
    for noise in (theirs, ours):
        assert 0.999 * bound < np.abs(noise).max() <= bound * (1 + 1e-6)
        assert noise.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
        assert abs(noise.mean()) < 0.02 * bound
    assert not np.array_equal(ours[0], ours[1])


@pytest.mark.slow
def test_noise_is_the_keys_and_no_evaluations(make_llama):
    model = make_llama(tie_word_embeddings=True)
    tokens = RNG.integers(0, 61, (2, 9)).astype(np.int32)
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
    micro = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, 1),
        "supervised": np.ones_like(tokens, bool),
        "positions": positions,
    }
    noisy, plain = sft(neftune_noise_alpha=5.0), sft()

    def total(objective, seed):
        key = jax.random.key(seed)
        return float(objective.loss(model.params, (), micro, model.cfg, key).total)

    assert total(noisy, 1) == total(noisy, 1)
    assert len({total(noisy, 1), total(noisy, 2), total(plain, 1)}) == 3
    sums = [o.sums(model.params, (), micro, model.cfg) for o in (noisy, plain)]
    jax.tree.map(np.testing.assert_array_equal, *sums)
    # The head that shares the embedding reads it as it is.
    added = models.with_noise(model.params, 5.0, jax.random.key(1))
    assert models.head(added, model.cfg).shape == (32, 61)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"neftune_noise_alpha": 0.0}, "neftune_noise_alpha"),
        ({"loss_type": "focal"}, "loss_type"),
        ({"loss_type": "dft", "label_smoothing": 0.1}, "label_smoothing"),
        ({"beta": 0.1}, "beta"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(options, key):
    problems = config.check_call("objective", "sft", OBJECTIVES, options)
    if not problems:
        with pytest.raises(InputError, match=f"objective.{key}: found"):
            sft(**options)
        return
    assert problems[0].startswith(f"objective.{key}: found")

"""The chunked loss against a plain log-softmax: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxpeft.adapters import LoRA
from jaxpeft.objectives import chunks
from jaxpeft.objectives.token_loss import nll_sum, token_sums

BATCH, SEQ, WIDTH, VOCAB = 3, 11, 8, 29


def made(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


HIDDEN, HEAD = made(BATCH, SEQ, WIDTH), made(WIDTH, VOCAB, seed=1)
TARGETS = np.random.default_rng(2).integers(0, VOCAB, (BATCH, SEQ)).astype(np.int32)
SUPERVISED = np.random.default_rng(3).random((BATCH, SEQ)) < 0.6
HEADS = {
    "array": HEAD,
    "lora": LoRA(
        base=HEAD,
        a=made(WIDTH, 2, seed=4),
        b=made(2, VOCAB, seed=5),
        scale=jnp.float32(0.5),
    ),
}


@pytest.fixture(params=[1, 4, SEQ], ids=lambda n: f"{n} at once")
def chunked(request, monkeypatch):
    """Chunks of one place, of four (11 is no multiple), of the whole sequence."""
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", request.param * BATCH * VOCAB)


def plain(hidden, matrix):
    logp = jax.nn.log_softmax((hidden @ matrix).astype(jnp.float32))
    at_target = jnp.take_along_axis(logp, TARGETS[..., None], axis=-1)[..., 0]
    return -jnp.sum(at_target * SUPERVISED)


def close(found, expected, **tolerance):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(
            one, other, **{"atol": 2e-5, "rtol": 1e-5, **tolerance}
        )


def test_sums_are_those_of_a_log_softmax(chunked):
    sums = jax.jit(token_sums)(HIDDEN, HEAD, TARGETS, SUPERVISED)
    logits = np.asarray(HIDDEN) @ np.asarray(HEAD)
    hits = (logits.argmax(-1) == TARGETS) & SUPERVISED
    np.testing.assert_allclose(sums.nll, plain(HIDDEN, HEAD), rtol=1e-6)
    assert (sums.correct, sums.count) == (hits.sum(), SUPERVISED.sum())
    assert {x.dtype for x in sums} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_hidden_states_and_a_trained_head(name, chunked):
    head = HEADS[name]

    def ours(hidden, head):
        return 3 * nll_sum(hidden, head, TARGETS, SUPERVISED)

    def theirs(hidden, head):
        matrix = head.dense() if isinstance(head, LoRA) else head
        return 3 * plain(hidden, matrix)

    found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(HIDDEN, head)
    expected = jax.jit(jax.value_and_grad(theirs, argnums=(0, 1)))(HIDDEN, head)
    if name == "lora":  # its scale is a constant
        found[1][1].__dict__["scale"] = expected[1][1].scale
    close(found, expected)


def test_a_frozen_head_costs_no_gradient(chunked):
    grad = jax.grad(lambda h: nll_sum(h, HEAD, TARGETS, SUPERVISED))
    close(jax.jit(grad)(HIDDEN), jax.grad(plain)(HIDDEN, HEAD))
    frozen, trained = (
        jax.make_jaxpr(jax.grad(nll_sum, argnums=n))(HIDDEN, HEAD, TARGETS, SUPERVISED)
        for n in (0, (0, 1))
    )
    assert shapes(trained.jaxpr).count((WIDTH, VOCAB)) > 0
    assert shapes(frozen.jaxpr).count((WIDTH, VOCAB)) == 0


def test_of_a_lora_head_only_the_adapter_can_train(chunked):
    node = HEADS["lora"]

    def ours(ab):
        head = node.replace(a=ab[0], b=ab[1])
        return nll_sum(HIDDEN, head, TARGETS, SUPERVISED)

    def theirs(ab):
        return plain(HIDDEN, node.base + 0.5 * ab[0] @ ab[1])

    pair = (node.a, node.b)
    close(jax.jit(jax.grad(ours))(pair), jax.jit(jax.grad(theirs))(pair))


def test_a_tied_head_gets_the_gradient_of_both_uses(chunked):
    embedding, tokens = HEAD.T, np.roll(TARGETS, 1)

    def ours(embedding):
        return nll_sum(embedding[tokens], embedding.T, TARGETS, SUPERVISED)

    def theirs(embedding):
        return plain(embedding[tokens], embedding.T)

    close(jax.jit(jax.grad(ours))(embedding), jax.jit(jax.grad(theirs))(embedding))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_in_and_out_float32_between(dtype):
    hidden, head = HIDDEN.astype(dtype), HEAD.astype(dtype)
    grad = jax.value_and_grad(nll_sum, argnums=(0, 1))
    value, (dh, dhead) = jax.jit(grad)(hidden, head, TARGETS, SUPERVISED)
    assert value.dtype == jnp.float32 and dh.dtype == dhead.dtype == dtype
    wide = hidden.astype(jnp.float32), head.astype(jnp.float32)
    expected = jax.value_and_grad(plain, argnums=(0, 1))(*wide)
    close(value, expected[0], rtol=2e-2)
    close(
        [x.astype(jnp.float32) for x in (dh, dhead)],
        expected[1],
        atol=8 * float(jnp.finfo(dtype).eps),
        rtol=0.1,
    )


def test_in_float16_small_slopes_of_a_scaled_loss_are_kept():
    """Tokens that are foreseen: the other probabilities are 1.5e-8, below float16's."""
    targets = np.arange(BATCH * SEQ).reshape(BATCH, SEQ) % WIDTH
    hidden = 18 * jax.nn.one_hot(targets, WIDTH, dtype=jnp.float16)
    head = jnp.eye(WIDTH, VOCAB, dtype=jnp.float32)
    seen = np.ones_like(SUPERVISED)

    def ours(hidden, head):
        return 2.0**12 * nll_sum(hidden, head, targets.astype(np.int32), seen)

    def theirs(hidden, head):
        logs = jax.nn.log_softmax(hidden @ head)
        return -(2.0**12) * jnp.take_along_axis(logs, targets[..., None], -1).sum()

    expected = jax.grad(theirs, argnums=(0, 1))(hidden.astype(jnp.float32), head)
    narrow = head.astype(jnp.float16)
    alone = jax.jit(jax.grad(ours))(hidden, narrow)
    assert alone.dtype == jnp.float16
    others = np.asarray(hidden) == 0  # at the target it is 1 less 1 in float32, too
    found = np.asarray(alone, np.float32)[others]
    close(found, np.asarray(expected[0])[others], rtol=0.02, atol=0)
    # A head that trains, too: its own gradient is float32 throughout.
    adapted = LoRA(narrow, head[:, :2], jnp.zeros((2, VOCAB)), scale=jnp.float32(1.0))
    by_b = jax.jit(jax.grad(ours, argnums=1))(hidden, adapted).b[:, WIDTH:]
    close(by_b, (head[:, :2].T @ expected[1])[:, WIDTH:], rtol=1e-3, atol=0)


def test_nothing_supervised_is_zero():
    nothing = np.zeros_like(SUPERVISED)
    value, grad = jax.value_and_grad(nll_sum)(HIDDEN, HEAD, TARGETS, nothing)
    assert value == 0 and not np.any(grad)
    assert token_sums(HIDDEN, HEAD, TARGETS, nothing).count == 0


def shapes(jaxpr):
    """The shape of everything that a program computes, inner programs included."""
    found = [v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars]
    for eqn in jaxpr.eqns:
        for inner in jaxprs_in_params(eqn.params):
            found += shapes(inner)
    return found


def test_the_logits_of_the_whole_batch_never_exist():
    batch, seq, width, vocab = 4, 512, 16, 32768
    whole = batch * seq * vocab
    assert whole > 8 * chunks.CHUNK_LOGITS
    arguments = (
        jax.ShapeDtypeStruct((batch, seq, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, seq), jnp.int32),
        jax.ShapeDtypeStruct((batch, seq), jnp.bool_),
    )
    grad = jax.value_and_grad(nll_sum, argnums=(0, 1))
    for function in (token_sums, grad):
        made = jax.make_jaxpr(function)(*arguments)
        assert max(map(np.prod, shapes(made.jaxpr))) <= chunks.CHUNK_LOGITS
        memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 4 * whole / 4

"""Log-probabilities of tokens against a log-softmax: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxpeft.adapters import LoRA
from jaxpeft.objectives import chunks
from jaxpeft.objectives.token_logps import token_logps

BATCH, SEQ, WIDTH, VOCAB = 3, 11, 8, 29


def made(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32)


HIDDEN, HEAD = made(BATCH, SEQ, WIDTH), made(WIDTH, VOCAB, seed=1)
TARGETS = np.random.default_rng(2).integers(0, VOCAB, (BATCH, SEQ)).astype(np.int32)
SUPERVISED = np.random.default_rng(3).random((BATCH, SEQ)) < 0.6
LOW = LoRA(
    base=HEAD,
    a=made(WIDTH, 2, seed=4),
    b=made(2, VOCAB, seed=5),
    scale=jnp.float32(0.5),
)
SLOPES = made(BATCH, SEQ, seed=7)  # any function of the values has some


@pytest.fixture(params=[1, 4, SEQ], ids=lambda n: f"{n} at once")
def chunked(request, monkeypatch):
    """Chunks of one place, of four (11 is no multiple), of the whole sequence."""
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", request.param * BATCH * VOCAB)


def plain(hidden, matrix):
    logp = jax.nn.log_softmax((hidden @ matrix).astype(jnp.float32))
    return jnp.take_along_axis(logp, TARGETS[..., None], -1)[..., 0] * SUPERVISED


def close(found, expected):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def shapes(jaxpr):
    """The shapes of all values in a jaxpr and those within it."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes(inner)


def test_values_are_those_of_a_log_softmax(chunked):
    found = jax.jit(token_logps)(HIDDEN, HEAD, TARGETS, SUPERVISED)
    close(found, plain(HIDDEN, HEAD))


@pytest.mark.slow
@pytest.mark.parametrize("head", [HEAD, LOW], ids=["array", "lora"])
@pytest.mark.parametrize("trains", [(0,), (0, 1)], ids=["frozen head", "trained head"])
def test_each_place_has_a_slope_of_its_own(head, trains, chunked):
    def ours(hidden, head):
        logps = token_logps(hidden, head, TARGETS, SUPERVISED)
        return jnp.sum(jnp.tanh(logps) * SLOPES)

    def theirs(hidden, head):
        matrix = head.dense() if isinstance(head, LoRA) else head
        return jnp.sum(jnp.tanh(plain(hidden, matrix)) * SLOPES)

    found = jax.jit(jax.value_and_grad(ours, argnums=trains))(HIDDEN, head)
    expected = jax.jit(jax.value_and_grad(theirs, argnums=trains))(HIDDEN, head)
    if len(trains) > 1 and isinstance(head, LoRA):  # its scale is a constant
        found[1][1].__dict__["scale"] = expected[1][1].scale
    close(found, expected)


def test_in_float16_small_slopes_of_a_scaled_loss_are_kept():
    # 60000 tokens that are all as likely: each one's slope is below float16's least.
    vocab, scale = 60000, 2.0**10
    head = jnp.asarray(np.random.default_rng(0).normal(size=(8, vocab)), jnp.float16)
    hidden = jnp.zeros((1, 1, 8), jnp.float16)
    target, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)

    def loss(hidden, head):
        return scale * jnp.sum(token_logps(hidden, head, target, mask))

    (found,) = jax.tree.leaves(jax.grad(loss)(hidden, head))
    wide = np.asarray(head, np.float32)
    expected = scale * (wide[:, 0] - wide.mean(axis=1))
    np.testing.assert_allclose(found[0, 0], expected, rtol=5e-3)


def test_the_logits_of_the_whole_batch_never_exist():
    batch, seq, width, vocab = 4, 512, 16, 32768
    arguments = (
        jax.ShapeDtypeStruct((batch, seq, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, seq), jnp.int32),
        jax.ShapeDtypeStruct((batch, seq), jnp.bool_),
    )

    def squares(*args):
        return jnp.sum(token_logps(*args).sum(-1) ** 2)

    assert batch * seq * vocab > 8 * chunks.CHUNK_LOGITS
    for argnums in ((0,), (0, 1)):
        made = jax.make_jaxpr(jax.grad(squares, argnums=argnums))(*arguments)
        assert max(map(np.prod, shapes(made.jaxpr))) <= chunks.CHUNK_LOGITS

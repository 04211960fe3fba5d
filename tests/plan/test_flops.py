"""The arithmetic of programs, against closed forms and the compiler's own count."""

import jax
import jax.numpy as jnp
import pytest

from jaxpeft import hardware, models
from jaxpeft.models.attention import attend
from jaxpeft.plan import flops


def of(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


def test_a_product_is_a_multiplication_and_an_addition_each():
    x, w = jnp.ones((3, 5, 7)), jnp.ones((7, 11))
    assert of(lambda x, w: x @ w, x, w) == 2 * 3 * 5 * 7 * 11
    batched = of(lambda a: jnp.einsum("bij,bkj->bik", a, a), x)
    assert batched == 2 * 3 * 5 * 5 * 7


def test_scans_count_their_turns_and_choices_the_dearer_branch():
    x, w = jnp.ones((4, 8)), jnp.ones((10, 8, 8))

    def loop(x, w):
        return jax.lax.scan(lambda c, k: (jnp.tanh(c @ k), None), x, w)[0].sum()

    one = 2 * 4 * 8 * 8
    assert of(loop, x, w) == 10 * one
    # Backwards a product each for the input and the weight.
    assert of(jax.grad(loop, argnums=(0, 1)), x, w) == 3 * 10 * one

    def choice(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[2])

    assert of(choice, x, w) == 2 * one


# Two products forwards, and backwards seven, scores and slopes twice among them. The
# kernels for GPUs say so of what is causal; here a TPU's row is a single block, and the
# outputs times their gradients are a product, too.
@pytest.mark.parametrize(
    ("platform", "kind", "products"),
    [("gpu", "NVIDIA L4", 9 * 1025 / 2048), ("tpu", "TPU v5 lite", 9 + 1 / 1024)],
)
def test_kernels_of_attention(platform, kind, products, monkeypatch):
    target = hardware.Target(platform, kind, 1)
    monkeypatch.setattr(hardware, "current", lambda: target)
    q, k = (jnp.ones((2, 1024, heads, 128), jnp.bfloat16) for heads in (4, 2))

    def both(q, k, v):
        return jax.grad(lambda *qkv: attend(*qkv).astype(jnp.float32).sum())(q, k, v)

    assert of(both, q, k, k) == products * 2 * 2 * 4 * 1024**2 * 128


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_s_forward_pass(make_llama, tied):
    cfg = make_llama(tie_word_embeddings=tied).cfg
    shapes = models.shapes(cfg, "float32")
    tokens = jax.ShapeDtypeStruct((3, 17), "int32")
    found = of(lambda p, t: models.forward(p, t, cfg), shapes, tokens)
    weights = sum(
        spec.shape[0] * spec.shape[1] * spec.shape[2]
        for spec in jax.tree.leaves(models.param_specs(cfg), is_leaf=models.is_spec)
        if len(spec.shape) == 3
    )
    weights += cfg.vocab_size * cfg.hidden_size
    # Scores and their use; a causal block meets only the keys before it.
    heads = cfg.num_attention_heads * cfg.head_dim * cfg.num_hidden_layers
    attention = 2 * 2 * 3 * 17 * 17 * heads
    assert 2 * 3 * 17 * weights < found <= 2 * 3 * 17 * weights + attention


def test_the_compiler_counts_the_same_where_nothing_loops():
    x, w = jnp.ones((64, 128)), jnp.ones((128, 256))

    def function(x, w):
        return jnp.sum(jnp.sin(x @ w) @ w.T)

    compiled = jax.jit(jax.value_and_grad(function)).lower(x, w).compile()
    theirs = compiled.cost_analysis()["flops"]  # elementwise work too
    ours = of(jax.value_and_grad(function), x, w)
    assert 0.9 * theirs < ours <= theirs

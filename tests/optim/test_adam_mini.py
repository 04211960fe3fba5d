"""Adam-mini's blocks by name, its bytes, and its errors; the courses are elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adam_mini import adam_mini
from jaxpeft.optim.layout import Layout

STACKED = Layout(stacked=r"(.*\.)?layers\..*")


def shapes(tx, params):
    """{dotted name: shape of the second moment}"""
    state = tx.init(params).leaves
    named = tree.named_leaves(state, is_leaf=lambda x: hasattr(x, "nu"))
    return {name: leaf.nu.shape for name, leaf in named}


def test_the_tensors_of_a_model_fall_into_the_paper_s_blocks(llama):
    cfg = llama.cfg
    found = shapes(adam_mini(1e-3, head_dim=cfg.head_dim, layout=STACKED), llama.params)
    layers, heads, kv = 2, 4, 2
    attention, mlp = "model.layers.self_attn", "model.layers.mlp"
    expected = {
        "model.embed_tokens.embedding": (61, 1),
        "lm_head.kernel": (1, 61),
        f"{attention}.q_proj.kernel": (layers, 1, heads, 1),
        f"{attention}.k_proj.kernel": (layers, 1, kv, 1),
        f"{attention}.v_proj.kernel": (layers, 1, 16),
        f"{attention}.o_proj.kernel": (layers, 1, 32),
        f"{mlp}.gate_proj.kernel": (layers, 1, 40),
        f"{mlp}.down_proj.kernel": (layers, 1, 32),
        "model.norm.scale": (1,),
        "model.layers.input_layernorm.scale": (layers, 1),
    }
    assert {name: found[name] for name in expected} == expected


def test_lora_s_factors_go_by_outputs_and_heads():
    kernel = {"a": jnp.ones((8, 2)), "b": jnp.ones((2, 12))}
    params = {"q_proj": {"kernel": kernel}, "o_proj": {"kernel": kernel}}
    found = shapes(adam_mini(1e-3, head_dim=4), params)
    assert found == {
        "q_proj.kernel.a": (1, 2),
        "q_proj.kernel.b": (1, 3, 1),
        "o_proj.kernel.a": (1, 2),
        "o_proj.kernel.b": (1, 12),
    }


def test_without_head_dim_queries_go_by_column():
    params = {"q_proj": {"kernel": jnp.ones((8, 12))}}
    assert shapes(adam_mini(1e-3), params) == {"q_proj.kernel": (1, 12)}


def test_the_patterns_are_the_caller_s():
    params = {"w": jnp.ones((8, 12)), "kernel": jnp.ones((8, 12))}
    found = shapes(adam_mini(1e-3, full="w", columns="none"), params)
    assert found == {"w": (8, 12), "kernel": (1, 1)}


def test_it_costs_half_of_adam():
    params = {"mlp": {"kernel": jnp.ones((64, 32))}}
    assert tree.nbytes(adam_mini(1e-3).init(params).leaves) == 4 * (64 * 32 + 32)


def test_a_block_moves_at_one_rate_per_gradient():
    g = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    params = {"q_proj": {"kernel": jnp.zeros((6, 8))}}
    tx = adam_mini(1e-3, head_dim=4)
    grads = {"q_proj": {"kernel": jnp.asarray(g)}}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    heads = g.reshape(6, 2, 4)
    expected = -1e-3 * heads / np.sqrt(np.mean(heads**2, (0, 2), keepdims=True))
    np.testing.assert_allclose(
        updates["q_proj"]["kernel"], expected.reshape(6, 8), rtol=1e-5
    )


def test_heads_that_do_not_divide_the_columns_are_refused():
    params = {"q_proj": {"kernel": jnp.ones((8, 12))}}
    with pytest.raises(
        InputError, match=r"head_dim: found 5; .* 12 columns of 'q_proj"
    ):
        adam_mini(1e-3, head_dim=5).init(params)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"head_dim": 0}, "optimizer.head_dim: found 0"),
        ({"rows": "("}, r"optimizer.rows: found '\(', which is no regular expression"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        adam_mini(1e-3, **settings)

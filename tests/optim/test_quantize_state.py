"""Any optimizer's state in 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import testbed

from jaxpeft.errors import InputError
from jaxpeft.optim.adamw import adamw
from jaxpeft.optim.adamw_8bit import adamw_8bit
from jaxpeft.optim.prodigy import prodigy
from jaxpeft.optim.quantize_state import quantize_state
from jaxpeft.optim.schedule_free import schedule_free_adamw
from jaxpeft.quant import Blockwise


def course(tx, steps=4):
    at = testbed.problem()
    rng = np.random.default_rng(1)
    grads = {
        n: rng.normal(size=(steps, *v.shape)).astype(np.float32)
        for n, v in at.start.items()
    }
    return testbed.run_open(tx, at, grads)


@pytest.mark.slow
def test_adamw_around_is_adamw_8bit_inside():
    found, state = course(quantize_state(adamw(1e-3, weight_decay=0.0)))
    expected, inside = course(adamw_8bit(1e-3))
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6)
    for name in ("layer0.kernel", "layer1.kernel"):
        mine, theirs = state.leaves[name], inside.leaves[name]
        assert mine.mu.signed and not mine.nu.signed
        assert np.mean(np.asarray(mine.nu.codes != theirs.nu.codes)) < 1e-3


def test_what_is_small_named_or_not_a_float_stays():
    params = {"embed": {"w": jnp.ones((80, 80))}, "b": jnp.ones(9), "v": jnp.ones(5000)}
    tx = quantize_state(optax.adam(1e-3), float32_names=r"embed\..*")
    state = tx.init(params)[0]
    assert state.count.dtype == jnp.int32
    assert state.mu["embed"]["w"].dtype == jnp.float32
    assert state.mu["b"].dtype == jnp.float32
    # A parameter may be named like a second moment.
    assert isinstance(state.mu["v"], Blockwise) and state.mu["v"].signed
    assert not state.nu["v"].signed


def test_copies_of_the_parameters_stay():
    params = {"w": jnp.ones((64, 128))}
    state = quantize_state(prodigy()).init(params)
    kinds = [type(x).__name__ for x in jax.tree.leaves(state, is_leaf=is_blockwise)]
    assert kinds.count("Blockwise") == 3
    (free,) = quantize_state(schedule_free_adamw()).init(params).leaves.values()
    assert isinstance(free.nu, Blockwise) and free.z.dtype == jnp.float32


def is_blockwise(x):
    return isinstance(x, Blockwise)


def test_other_dtypes_and_unsigned_fields_of_one_s_own():
    tx = quantize_state(optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16))
    params = {"w": jnp.ones((64, 128), jnp.bfloat16)}
    state = tx.init(params)
    updates, state = tx.update({"w": params["w"]}, state, params)
    trace = state[0].trace["w"]
    assert isinstance(trace, Blockwise) and trace.dequantize().dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["w"].astype(jnp.float32), -0.1, rtol=1e-2)
    trace = quantize_state(optax.sgd(0.1, momentum=0.9), unsigned="trace").init(params)
    assert not trace[0].trace["w"].signed


def test_arguments_of_the_update_reach_the_inside():
    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: g * value, updates), state

    inside = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = quantize_state(inside)
    updates, _ = tx.update({"w": jnp.ones(3)}, tx.init({"w": jnp.ones(3)}), value=2.0)
    np.testing.assert_array_equal(updates["w"], 2 * np.ones(3))


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(InputError, match="optimizer.unsigned: found '\\('"):
        quantize_state(optax.adam(1e-3), unsigned="(")

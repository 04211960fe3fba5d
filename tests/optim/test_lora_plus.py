"""LoRA+: which leaves train faster, schedules, holes and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import optim
from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Group, Layout
from jaxpeft.optim.lora_plus import lora_plus
from jaxpeft.optim.sgd import sgd

PARAMS = {
    "q_proj": {"kernel": {"base": None, "a": jnp.ones((4, 2)), "b": jnp.zeros((2, 3))}},
    "frozen": None,
    "bias": jnp.ones(3),
}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def updates_of(tx, steps=1):
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(GRADS, state, PARAMS)
    return updates


@pytest.mark.parametrize("rate", [0.1, lambda count: 0.1 / (1 + count)])
def test_b_alone_trains_faster(rate):
    updates = updates_of(lora_plus(sgd, rate, 16), steps=2)
    base = rate(1) if callable(rate) else rate
    kernel = updates["q_proj"]["kernel"]
    np.testing.assert_allclose(kernel["b"], -16 * base, rtol=1e-6)
    np.testing.assert_allclose(kernel["a"], -base, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -base, rtol=1e-5)
    assert kernel["base"] is None and updates["frozen"] is None


def test_a_group_does_the_same():
    grouped = optim.adamw(0.1, layout=Layout(groups=(Group(r"(.*\.)?b", 16.0),)))
    jax.tree.map(
        np.testing.assert_array_equal,
        updates_of(lora_plus(optim.adamw, 0.1, 16.0), steps=3),
        updates_of(grouped, steps=3),
    )


def test_any_optax_transformation_will_do():
    updates = updates_of(lora_plus(optax.adam, 0.1, 2, pattern="bias"))
    np.testing.assert_allclose(updates["bias"], -0.2, rtol=1e-5)


def test_what_would_do_nothing_is_refused():
    with pytest.raises(
        InputError, match=r"optimizer.pattern: found 'lora_B'.*kernel.a"
    ):
        lora_plus(sgd, 0.1, 16, pattern="lora_B").init(PARAMS)
    with pytest.raises(InputError, match="optimizer.ratio: found 0"):
        lora_plus(sgd, 0.1, 0)

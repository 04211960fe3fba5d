"""Compiled functions: one program a shape, announced."""

import jax.numpy as jnp
import numpy as np

from jaxpeft.devices.compiled import Compiled


def test_one_program_for_each_shape_of_the_batch(own_programs):
    lines, traces = [], []

    def function(scale, batch):
        traces.append(batch["tokens"].shape)
        return scale * jnp.sum(batch["tokens"])

    compiled = Compiled(function, "sum", lines.append)
    for shape in ((2, 3), (2, 3), (2, 5), (2, 3)):
        batch = {"tokens": jnp.ones(shape)}
        assert compiled.is_new(batch) is (shape not in traces)
        assert compiled(jnp.float32(2), batch) == 2 * np.prod(shape)
    assert traces == [(2, 3), (2, 5)]
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled the sum for batches of 2 x 3",
        "compiled the sum for batches of 2 x 5",
    ]
    assert "MiB of temporaries" in lines[0]
    assert compiled.seconds > 0


def test_a_state_that_is_carried_is_given_up_for_the_next():
    def function(total, batch):
        return total + batch["tokens"], jnp.sum(total)

    compiled = Compiled(function, "sum", lambda line: None, carries=True)
    total, batch = jnp.zeros(3), {"tokens": jnp.ones(3)}
    new, before = compiled(total, batch)
    np.testing.assert_array_equal(new, 1.0)
    assert before == 0
    assert total.is_deleted() and not batch["tokens"].is_deleted()

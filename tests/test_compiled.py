"""Compiled functions: one program a shape, announced."""

import jax.numpy as jnp
import numpy as np

from jaxpeft.compiled import Compiled


def test_one_program_for_each_shape_of_the_batch():
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


def test_donated_arguments_are_given_up():
    def function(total, batch):
        return total + batch["tokens"]

    compiled = Compiled(function, "sum", lambda line: None, donate=(0,))
    total, batch = jnp.zeros(3), {"tokens": jnp.ones(3)}
    np.testing.assert_array_equal(compiled(total, batch), 1.0)
    assert total.is_deleted() and not batch["tokens"].is_deleted()

"""How XLA computes a LoRA's products on a GPU, by its own compiler."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.adapters import lora
from jaxpeft.devices import gpu_products, sharding, topologies

# So large that XLA cuts no product of the base along its inner axis.
TOKENS, D_IN, D_OUT = 4096, 2048, 3072


def test_the_users_own_flag_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=true")
    assert gpu_products.options() == {gpu_products.FLAG: False}
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 --{gpu_products.FLAG}=true")
    assert gpu_products.options() == {}


@pytest.mark.slow
def test_a_large_product_adds_onto_the_update():
    target = topologies.parse("h100x1")
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    mesh = sharding.make_mesh(1, devices=topologies.devices(target))
    place = sharding.replicated(mesh)
    node = jax.eval_shape(
        lambda base, key: lora(base, key, r=16),
        jax.ShapeDtypeStruct((D_IN, D_OUT), jnp.bfloat16),
        jax.random.key(0),
    )
    x = jax.ShapeDtypeStruct((TOKENS, D_IN), jnp.bfloat16)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (x, node)
    )

    def step(x, node):
        y, back = jax.vjp(lambda x: x @ node, x)
        return y, back(y)

    with jax.set_mesh(mesh):
        lowered = jax.jit(step).trace(*shapes).lower()
        program = lowered.compile({**target.options, **gpu_products.options()})
    lines = program.as_text().splitlines()
    onto = [line for line in lines if "__cublas$lt$matmul" in line]
    onto = [re.search(r"= \(?(\w+\[\d+,\d+\])", x)[1] for x in onto if '"beta":1' in x]
    # Forwards and backwards, the product of the base and nothing else.
    assert sorted(onto) == [f"bf16[{TOKENS},{D_IN}]", f"bf16[{TOKENS},{D_OUT}]"]
    # No addition stands alone.
    assert not [x for x in lines if re.search(rf"= bf16\[{TOKENS},\d+\].* add\(", x)]

"""What the updates of stacked layers ask of LAPACK: one matrix a call."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxpeft import optim
from jaxpeft.devices.one_by_one import one_by_one

# Those whose updates decompose matrices, with the kernel each one calls.
KERNELS = {
    "riemannian_adamw": "spotrf",
    "lora_rite": "sgeqrf",
    "lora_muon": "ssyevd",
    "galore": "sgesdd",
}


def calls(function, *arrays):
    """(kernel, the ranks of its operands) of each LAPACK call of a CPU's program."""
    text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cpu",)).as_text()
    found = re.findall(r"@lapack_(\w+?)_ffi\(.*?\) \{.*\} : \((.*?)\) ->", text)
    return [(name, {t.count("x") for t in types.split(", ")}) for name, types in found]


@pytest.mark.parametrize("name", KERNELS)
def test_stacked_layers_meet_lapack_one_by_one(name):
    params = {"layers": {"q": {"a": jnp.ones((3, 8, 4)), "b": jnp.ones((3, 4, 8))}}}
    section = {"name": name, "learning_rate": 1e-3, "max_grad_norm": None}
    if name == "galore":
        section["rank"] = 2
    tx = optim.make(section, {"name": "constant"}, 10)
    found = calls(tx.update, params, tx.init(params), params)
    assert KERNELS[name] in {kernel for kernel, _ in found}
    # A stack would have rank 3, and its call would wait for XLA's threads on one.
    assert all(max(ranks) <= 2 for _, ranks in found), found


def test_a_plain_vmap_would_call_for_the_stack():
    stack = jnp.stack([jnp.eye(4)] * 3)
    assert max(calls(jax.vmap(jnp.linalg.cholesky), stack)[0][1]) == 3


def test_stacks_keep_their_values():
    stack = jnp.stack([jnp.eye(4) * (i + 2) + 1 for i in range(3)])
    ours = jax.vmap(one_by_one(jnp.linalg.cholesky))(stack)
    assert (ours == jnp.linalg.cholesky(stack)).all()

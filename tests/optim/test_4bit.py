"""AdamW of 4 bits beside the same equations written out over torchao's layout."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import testbed

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.adamw_4bit import adamw_4bit
from jaxpeft.quant import Blockwise, codebooks


def rounded(x, values):
    """Blocks of 128 of flat `x`, decoded again; and the packed codes."""
    blocks = x.reshape(-1, 128)
    scale = np.abs(blocks).max(1, keepdims=True)
    codes = np.abs((blocks / scale)[..., None] - values).argmin(-1)
    packed = codes.reshape(-1, 2) @ np.array([16, 1])
    return (values[codes] * scale).ravel(), packed


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 256), (64, 96)])
def test_three_updates_are_those_written_out(shape):
    rng = np.random.default_rng(0)
    p = rng.normal(size=shape)
    tx = adamw_4bit(1e-2, weight_decay=0.1)
    params = {"w": jnp.asarray(p, jnp.float32)}
    state = tx.init(params)
    m = v = np.zeros(p.size)
    for t in range(1, 4):
        g = rng.normal(size=shape).astype(np.float32)
        params, state = testbed.advanced(tx, (params, state), {"w": jnp.asarray(g)})
        m = 0.9 * m + 0.1 * g.ravel()
        v = 0.999 * v + 0.001 * g.ravel().astype(np.float64) ** 2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p * (1 - 1e-3) - 1e-2 * step.reshape(shape)
        m, m_codes = rounded(m, codebooks.values(True, 4).astype(np.float64))
        v, v_codes = rounded(v, codebooks.values(False, 4).astype(np.float64))
        np.testing.assert_allclose(params["w"], p, atol=1e-6)
        np.testing.assert_array_equal(np.ravel(state.leaves["w"].mu.codes), m_codes)
        np.testing.assert_array_equal(np.ravel(state.leaves["w"].nu.codes), v_codes)


def test_bytes_and_what_stays_in_float32():
    params = {"w": jnp.ones((64, 256)), "odd": jnp.ones(5000), "small": jnp.ones(128)}
    state = adamw_4bit(1e-2).init(params)
    assert tree.nbytes(state.leaves["w"]) <= 1.07 * 64 * 256
    assert isinstance(state.leaves["w"].nu, Blockwise)
    assert state.leaves["odd"].mu.dtype == state.leaves["small"].nu.dtype == jnp.float32


def test_an_odd_block_is_refused():
    with pytest.raises(InputError, match="block_size: found 127; give an even number"):
        adamw_4bit(1e-2, block_size=127)

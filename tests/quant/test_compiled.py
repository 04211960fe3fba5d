"""Products with quantized kernels as the compilers of a TPU and of a GPU make them."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from jaxpeft import hardware, quant
from jaxpeft.devices import sharding, topologies
from jaxpeft.plan import vendor

LAYERS, D_IN, D_OUT, TOKENS = 4, 512, 1024, 256
MATRIX = D_IN * D_OUT


@pytest.fixture(scope="module", params=["v5e-1", "h100x1"])
def place(request, verdicts):
    """The target, its mesh, and where its compiler's words are kept."""
    target = topologies.parse(request.param)
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    mesh = sharding.make_mesh(devices=topologies.devices(target)[:1])
    return target, mesh, verdicts


def compiled(kind, place):
    """(text, bytes of temporaries) of the gradient of layers that are computed twice.

    kind: None for kernels in bfloat16.
    """
    topology, mesh, folder = place
    where = SingleDeviceSharding(mesh.devices.flat[0])

    def there(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    target = hardware.of_mesh(mesh)
    up, down = (
        jax.tree.map(
            lambda x: there(x.shape, x.dtype),
            quant.shapes(kind, (LAYERS, *shape), "bfloat16", target)
            if kind
            else there((LAYERS, *shape)),
        )
        for shape in ((D_IN, D_OUT), (D_OUT, D_IN))
    )

    def layer(x, kernels):
        up, down = kernels
        return x + jax.nn.silu(x @ up) @ down, None

    def loss(x, kernels):
        y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, kernels)
        return jnp.sum(y.astype(jnp.float32))

    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss)).lower(there((1, TOKENS, D_IN)), (up, down))
        said, _ = vendor.compiled(step, topology, folder)
    return said.text, said.temporaries


@pytest.fixture(scope="module")
def plain(place):
    """Bytes of temporaries with kernels in bfloat16."""
    return compiled(None, place)[1]


@pytest.mark.parametrize("kind", sorted(quant.KERNELS))
def test_a_few_matrices_are_all_that_is_made(kind, place, plain):
    text, temporaries = compiled(kind, place)
    moved = re.findall(rf"= [us]\d+\[{LAYERS},([\d,]+)\]\S* (?:copy|transpose)\(", text)
    # Small as they are here, bytes are fetched whole into a TPU's own memory.
    if kind not in ("int8", "fp8"):
        assert [dims for dims in moved if _size(dims) > MATRIX // 64] == []
    loops = re.findall(r"= \((.*)\) while\(", text)
    assert len(loops) == 2
    carried = re.findall(r"[fs]32\[([\d,]+)\]", " ".join(loops))
    codes = {f"{LAYERS},{D_IN // 8},{D_OUT}", f"{LAYERS},{D_OUT // 8},{D_IN}"}
    assert [d for d in set(carried) - codes if _size(d) > LAYERS * MATRIX // 64] == []
    more = (temporaries - plain) / MATRIX
    assert more <= 1


def _size(dims):
    return math.prod(map(int, dims.split(",")))

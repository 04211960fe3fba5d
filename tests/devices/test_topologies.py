"""Devices that are not here: their names, their counts, and what they are to JAX."""

import jax
import jax.numpy as jnp
import pytest

from jaxpeft import hardware
from jaxpeft.devices import sharding, topologies
from jaxpeft.devices.gpus import GPUS
from jaxpeft.errors import InputError

# Text: (devices, JAX's name for them). The counts are Google's and NVIDIA's own.
NAMED = {
    "v3-8": (8, "TPU v3"),
    "v4-8": (4, "TPU v4"),
    "v5e-1": (1, "TPU v5 lite"),
    "v5e-16": (16, "TPU v5 lite"),
    "v5p-8": (4, "TPU v5"),
    "v5p:2x2x2": (8, "TPU v5"),
    "v6e-4": (4, "TPU v6 lite"),
    "tpu7x-8": (8, "TPU7x"),
    "h100x16": (16, "NVIDIA H100 80GB HBM3"),
    "h100:1x2": (2, "NVIDIA H100 80GB HBM3"),
    **{f"{name}x1": (1, gpu.kind) for name, gpu in GPUS.items()},
}


def compiler(text):
    """Skips where the compiler of a target is not installed: the extra test has it."""
    if remedy := topologies.missing(topologies.parse(text)):
        pytest.skip(remedy)


@pytest.mark.parametrize("text", NAMED)
def test_a_target_is_so_many_devices_of_a_kind_that_is_known(text):
    count, kind = NAMED[text]
    target = topologies.parse(text)
    assert target.count == count
    compiler(text)
    found = topologies.devices(target)
    assert [device.device_kind for device in found] == [kind] * count
    assert {device.platform for device in found} == {target.platform}
    known = hardware.of_mesh(sharding.make_mesh(devices=found)).device
    assert known is not None and known.memory > 0 and known.bandwidth > 0
    if target.gpu is not None:  # the maker's GB, and what the driver leaves of them
        assert 0.9 < target.gpu.memory / known.memory < 1.1
        assert 0.9 < target.gpu.bandwidth / known.bandwidth < 1.1


@pytest.mark.parametrize("text", ["v5e-4", "h100x4"])
def test_what_is_traced_for_a_target_knows_it(text):
    compiler(text)
    target = topologies.parse(text)
    mesh = sharding.make_mesh(fsdp=4, data=1, devices=topologies.devices(target))
    seen = []

    def double(x):
        seen.append(hardware.current())
        return 2 * x

    whole = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((16, 128), jnp.bfloat16, sharding=whole)
    with jax.set_mesh(mesh):
        program = jax.jit(double).trace(x).lower().compile(target.options)
    assert [(one.platform, one.count) for one in seen] == [(target.platform, 4)]
    assert program.memory_analysis().argument_size_in_bytes == 16 * 128 * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5f-16", "did you mean 'v5p' or 'v5e'"),
        ("h10x8", "did you mean 'h100'"),
        ("abacus", "choose from v3, v4"),
        ("h100", "says not how many; for example h100x8"),
        ("v5e-3", "v5e comes in 1, 4, 8, 16"),
        ("v5p-7", "2, 8, 16"),
        ("h100x9", "a node has 1 to 8 GPUs"),
        ("v5p:2x2", "has 3 numbers"),
        ("v5e:0x2", "none of them 0"),
    ],
)
def test_what_is_no_target_is_refused(text, message):
    with pytest.raises(InputError, match="--target") as error:
        topologies.parse(text)
    assert message in str(error.value)


def test_a_topology_that_the_compiler_refuses_is_a_wrong_input():
    compiler("v5e-4")
    with pytest.raises(InputError, match="'v5e:3x3'.*not divisible"):
        topologies.devices(topologies.parse("v5e:3x3"))


@pytest.mark.parametrize(
    ("text", "extra"), [("v5e-4", "aot-tpu"), ("h100x1", "aot-cuda")]
)
def test_without_its_compiler_the_remedy_is_an_extra(text, extra, monkeypatch):
    monkeypatch.setattr(topologies, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install 'jaxpeft\[{extra}\]'"):
        topologies.devices(topologies.parse(text))

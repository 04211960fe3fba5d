"""What XLA is told of a GPU's memory."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.devices import (
    gpu_memory,
    host_memory,
    sharding,
    topologies,
    xla_options,
)

GB = 10**9


class Lowered:
    """A program that is given so many bytes."""

    def __init__(self, given, text="module"):
        self.args_info = {"x": jax.ShapeDtypeStruct((given // 2,), jnp.bfloat16)}
        self.text = text

    def as_text(self):
        return self.text


def limit_of_xla(memory, given, factor):
    """As `GetSchedulerMemoryLimit` of XLA computes it."""
    return (memory * 80 // 100 - given) * factor // 100


@pytest.mark.parametrize("given", [0, 8 * GB, 16 * GB, 17 * GB])
def test_xla_counts_on_the_room_that_there_is(given):
    room = 22 * GB
    told = gpu_memory.options(Lowered(given), gpu_memory.Room(24 * GB, room))
    limit = limit_of_xla(24 * GB, given, told[gpu_memory.FLAG])
    assert 0.93 * (room - given) < limit <= 0.95 * (room - given)


def test_xla_is_told_nothing_where_that_would_say_less_or_too_much(monkeypatch):
    # As much as it counts on by itself, or less: JAX has 75 % of the device.
    assert (
        gpu_memory.options(Lowered(GB), gpu_memory.Room(24 * GB, 0.75 * 24 * GB)) == {}
    )
    # More is given than it counts on: no factor makes room of that.
    assert gpu_memory.options(Lowered(20 * GB), gpu_memory.Room(24 * GB, 22 * GB)) == {}
    # Arrays on the host are no part of the device's memory.
    there = Lowered(GB, f"memory_kind = {host_memory.KIND}")
    assert gpu_memory.options(there, gpu_memory.Room(24 * GB, 22 * GB)) == {}
    monkeypatch.setenv("XLA_FLAGS", f"--{gpu_memory.FLAG}=95")
    assert gpu_memory.options(Lowered(GB), gpu_memory.Room(24 * GB, 22 * GB)) == {}


def test_a_run_tells_what_jax_can_take_of_one_gpu():
    def device(limit, kind="NVIDIA GeForce RTX 4090", platform="gpu"):
        stats = None if limit is None else {"bytes_limit": limit}
        return SimpleNamespace(
            platform=platform, device_kind=kind, memory_stats=lambda: stats
        )

    def told(device, count=1):
        room, program = gpu_memory.room_of(device), Lowered(16 * GB)
        return xla_options.options(program, device.platform, count, room, carries=False)

    memory = 25393692672
    room = gpu_memory.SHARE * memory
    expected = gpu_memory.options(Lowered(16 * GB), gpu_memory.Room(memory, room))
    assert expected and told(device(memory)) == told(device(int(room))) == expected
    assert told(device(int(0.75 * memory))) == {}
    assert told(device(memory), count=2) == {}
    assert told(device(None)) == {} == told(device(memory, "Another"))
    assert told(device(memory, platform="cpu")) == {}


@pytest.mark.slow
def test_no_product_is_repeated_where_there_is_room():
    target = topologies.parse("rtx4090x1")
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    mesh = sharding.make_mesh(1, devices=topologies.devices(target))
    place = sharding.replicated(mesh)

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=place)

    def gradient(x, layers, held):
        def loss(x):
            for up, down in layers:
                x = x + jnp.tanh(x @ up) @ down
            return x.astype(jnp.float32).sum()

        return jax.grad(loss)(x) + held[0]

    layers = [(shape(1024, 16384), shape(16384, 1024))] * 3
    arguments = shape(2**15, 1024), layers, shape(15 * 2**29)
    lowered = jax.jit(gradient).trace(*arguments).lower()
    room = gpu_memory.SHARE * target.memory
    told = gpu_memory.options(lowered, gpu_memory.Room(target.memory, room))

    def compiled(options):
        program = lowered.compile({**target.options, **options})
        repeated = re.findall(r"%(\S*dot\S*\.remat\d*) = ", program.as_text())
        memory = program.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return repeated, total + memory.temp_size_in_bytes

    assert compiled({})[
        0
    ]  # what it is told for: were this empty, it would be of no use
    repeated, total = compiled(told)
    assert not repeated and total < room

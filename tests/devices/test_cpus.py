"""CPU devices that stand in for a pod get threads enough."""

import os

import pytest

from jaxpeft.devices import cpus


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"XLA_FLAGS": f"--xla_other=1 {cpus.FLAG}64"}, "256"),
        ({"XLA_FLAGS": f"{cpus.FLAG}2 {cpus.FLAG}80"}, "320"),
        ({"JAX_NUM_CPU_DEVICES": "64"}, "256"),
        ({"XLA_FLAGS": f"{cpus.FLAG}64", cpus.VARIABLE: "3"}, "3"),
        ({"XLA_FLAGS": "--xla_other=1", "JAX_NUM_CPU_DEVICES": "-1"}, None),
    ],
)
def test_devices_that_the_environment_asks_for_get_threads(
    monkeypatch, environment, threads
):
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    cpus.give_threads()
    assert environment.get(cpus.VARIABLE) == threads

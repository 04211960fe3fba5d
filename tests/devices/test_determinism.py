"""`deterministic: true` before, after and against what the environment says."""

import os
import subprocess
import sys

import jax
import pytest

from jaxpeft.devices import determinism
from jaxpeft.errors import InputError

FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "--xla_dump_disable_metadata=true"])
def test_xla_is_told_before_it_starts(before):
    """XLA ends a program whose flags it does not know."""
    code = (
        "import os, jax; from jaxpeft.devices import determinism; "
        "determinism.require(); "
        "determinism.require(); print(os.environ['XLA_FLAGS']); "
        "print(jax.numpy.ones(3).sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": before, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.split() == [*before.split(), FLAG, "3.0"], done.stderr


def test_where_it_is_too_late(monkeypatch):
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    determinism.require()  # a CPU needs nothing
    assert os.environ["XLA_FLAGS"] == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(InputError, match=f"too late; start.*{FLAG}"):
        determinism.require()
    monkeypatch.setenv("XLA_FLAGS", FLAG)
    determinism.require()


def test_an_environment_that_says_the_opposite(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    assert not determinism.is_required()
    with pytest.raises(InputError, match="deterministic: found true.*=false"):
        determinism.require()

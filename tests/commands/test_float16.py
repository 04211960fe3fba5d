"""A run in float16 that overflows: its log, and its continuation to the bit.

On a CPU activations are float32, so that what decides this is told otherwise.
"""

import shutil

import pytest

from jaxpeft.assembly import precision, scaling


@pytest.fixture(autouse=True)
def in_float16(monkeypatch):
    """Activations in float16, and a scale that overflows at once and grows soon."""
    monkeypatch.setattr(precision, "widens", lambda dtype, target: False)
    monkeypatch.setattr(scaling, "INITIAL", 2.0**34)
    monkeypatch.setattr(scaling, "BACKOFF", 2.0**-9)
    monkeypatch.setattr(scaling, "INTERVAL", 2)


@pytest.mark.slow
def test_a_run_that_overflows_continues_to_the_bit(trained, metrics, tmp_path):
    changes = {"model.dtype": "float16", "training.max_nonfinite_steps": 0}
    changes |= {"training.save_steps": 5}
    done = trained("run", **changes)
    assert done.code == 0, done.err
    assert "computing in float16: the loss is scaled" in done.out
    assert "scale 1.71799e+10" in done.out
    whole, _ = metrics(tmp_path / "run")
    scales = [line["loss_scale"] for line in whole]
    assert scales[0] == 2.0**34 and whole[0]["grad_norm"] is None
    assert min(scales) < scales[0] and max(scales[4:]) > min(scales)
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")  # as if killed on the way
    again = trained("run", **changes)
    assert again.code == 0 and "continuing after step 5" in again.out
    assert again.digest == done.digest and weights.read_bytes() == before
    parts, _ = metrics(tmp_path / "run")
    for name in ("loss", "loss_scale"):
        assert [line[name] for line in parts] == [line[name] for line in whole]

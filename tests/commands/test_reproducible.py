"""Two runs of one configuration are the same bits, and say what they were made with."""

import json
import shutil

from jaxpeft.assembly import configuration
from jaxpeft.assembly.run import Run

from .conftest import write_config

CHANGES = {
    "adapter.lora_dropout": 0.2,
    "training.max_steps": 4,
    "training.save_steps": 2,
    "seed": 7,
}


def test_the_same_again(trained, tmp_path):
    one, two = (
        trained(name, deterministic=kind, **CHANGES)
        for name, kind in (("one", False), ("two", True))
    )
    assert one.code == two.code == 0, two.err
    assert one.digest == two.digest
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "one" / weights).read_bytes() == (
        tmp_path / "two" / weights
    ).read_bytes()
    other = trained("other", **{**CHANGES, "seed": 8})
    assert other.code == 0 and other.digest != one.digest

    path = tmp_path / "two" / "environment.json"
    found = json.loads(path.read_text())
    assert found["deterministic"] is True and found["seed"] == 7
    assert found["resumed"] == []
    # A finished run that is started once more does nothing, and notes nothing.
    assert trained("two", deterministic=True, **CHANGES).code == 0
    assert json.loads(path.read_text()) == found
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "4")
    assert trained("two", **CHANGES).digest == one.digest
    (again,) = json.loads(path.read_text())["resumed"]
    assert again["first_step"] == 3 and again["deterministic"] is False
    assert "packages" not in again  # as at the start


def test_new_keys_leave_an_older_runs_fingerprint_as_it_was(settings, tmp_path):
    path = write_config(tmp_path / "run.yaml", settings())
    run = Run(configuration.open_config(path, [f"output_dir={tmp_path / 'run'}"]))
    named = json.loads(run.fingerprint()["config"])
    assert "deterministic" not in named
    assert not {key for key in named["training"] if key.startswith("lr_")}

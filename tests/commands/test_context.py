"""Training and evaluation with sequences split over devices, by the commands."""

import json
import subprocess
import sys

import numpy as np
import pytest

from .conftest import write_config

CHILD = """
import json, sys
from jaxpeft import cli, evaluate, train
commands = {"train": train.main, "evaluate": evaluate.main}
for name, arguments in json.loads(sys.argv[1]):
    code = cli.run(commands[name], arguments)
    print("CODE", code)
"""


@pytest.mark.slow
def test_a_run_goes_on_with_sequences_split_otherwise(
    trained, command, settings, files, metrics, of_devices, tmp_path
):
    """Losses, evaluations and samples are those of one device."""
    changes = {
        "data.eval": {"path": files["eval"]},
        "training.max_steps": 6,
        "training.eval_steps": 3,
        "training.samples": 2,
        "optimizer.learning_rate": 1e-3,
    }
    assert trained("one", **changes).code == 0
    evaluated = command("evaluate", "--run", str(tmp_path / "one"), "--json")
    output = tmp_path / "eight"
    config = write_config(tmp_path / "eight.yaml", settings(**changes))
    common = ["--config", str(config), f"output_dir={output}", "mesh.data=1"]
    last = [*common, "mesh.context=8", "--resume=anyway"]
    steps = [
        ("train", [*common, "mesh.fsdp=2", "mesh.context=4", "training.max_steps=3"]),
        ("train", [*last, "data.max_length=100"]),
        ("train", last),
        ("evaluate", ["--run", str(output), "--json"]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(steps)],
        env=of_devices(8),
        capture_output=True,
        text=True,
    )
    codes = [s for s in done.stdout.splitlines() if s.startswith("CODE")]
    assert codes == ["CODE 0", "CODE 2", "CODE 0", "CODE 0"], done.stdout + done.stderr
    assert "data.max_length: found 100" in done.stderr and "96 or 104" in done.stderr
    assert "continuing after step 3" in done.stdout
    for one, eight in zip(metrics(tmp_path / "one"), metrics(output), strict=True):
        name = "loss" if "loss" in one[0] else "eval_loss"
        np.testing.assert_allclose(
            [line[name] for line in eight], [line[name] for line in one], rtol=1e-5
        )
    texts = [(tmp_path / n / "samples.json").read_text() for n in ("one", "eight")]
    assert texts[0] == texts[1]
    last = done.stdout.rsplit("CODE", 2)[1].split("\n", 1)[1]
    one, eight = (json.loads(text)["eval_loss"] for text in (evaluated.out, last))
    assert eight == pytest.approx(one, rel=1e-5)

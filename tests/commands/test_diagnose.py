"""What a real run whose rate is too low is told, on the way and at its end."""

import json

import numpy as np
import pytest


def test_a_rate_that_is_too_low_is_told_during_and_after(
    trained, command, metrics, files, tmp_path
):
    done = trained(
        "slow",
        **{
            "optimizer": {"name": "sgd", "learning_rate": 1e-7, "max_grad_norm": None},
            "data.eval": {"path": files["eval"]},
            "training.max_steps": 12,
            "training.eval_steps": 4,
        },
    )
    assert done.code == 0, done.err
    told = [line for line in done.out.splitlines() if "flat: evaluation loss" in line]
    assert len(told) == 2  # once on the way, and once at the end
    assert told[0].startswith("step 8: ") and "learning_rate to 1e-06" in told[1]
    again = command("diagnose", "--run", str(tmp_path / "slow"), "--json")
    [found] = json.loads(again.out)
    assert found["kind"] == "flat" and found["remedy"] in told[1]
    # Plain descent moves by the rate times the gradient.
    lines, _ = metrics(tmp_path / "slow")
    columns = zip(*((s["update_norm"], s["grad_norm"]) for s in lines), strict=True)
    moved, gradient = map(np.asarray, columns)
    np.testing.assert_allclose(moved, 1e-7 * gradient, rtol=1e-4)


@pytest.mark.parametrize("there", [True, False])
def test_a_directory_without_metrics_is_refused(there, command, tmp_path):
    folder = tmp_path if there else tmp_path / "absent"
    done = command("diagnose", "--run", str(folder))
    assert done.code == 2 and "metrics.jsonl" in done.err and "output_dir" in done.err


def test_a_healthy_run_is_told_nothing(finished, command):
    done = command("diagnose", "--run", str(finished))
    assert done.code == 0, done.err
    assert done.out == "nothing to remark in 25 logged steps\n"

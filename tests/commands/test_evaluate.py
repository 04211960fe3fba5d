"""`evaluate`: the losses of a run, and of what a configuration starts from."""

import json
import math

import pytest
import yaml


def test_a_run_evaluates_to_its_own_last_line(finished, command, metrics):
    expected = metrics(finished)[1][-1]
    done = command("evaluate", "--run", str(finished), "--json")
    assert done.code == 0
    result = json.loads(done.out)  # and nothing else on standard output
    assert result["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-5)
    assert result["eval_accuracy"] == pytest.approx(expected["eval_accuracy"])
    assert result["eval_tokens"] == expected["eval_tokens"]
    assert result["eval_perplexity"] == pytest.approx(math.exp(result["eval_loss"]))

    done = command("evaluate", "--run", str(finished), "data.eval_batch_size=3")
    assert done.code == 0
    assert f"loss            {result['eval_loss']:.4f} nats per token" in done.out
    assert f"tokens          {result['eval_tokens']:,}" in done.out


def test_a_configuration_evaluates_to_what_training_starts_from(
    finished, command, metrics, tmp_path
):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    _, evaluations = metrics(finished)
    for adapter, line in ((None, 0), (str(finished / "adapter"), -1)):
        config["adapter"] = {"init_from": adapter}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        done = command("evaluate", "--config", str(path), "--json")
        assert json.loads(done.out)["eval_loss"] == pytest.approx(
            evaluations[line]["eval_loss"], abs=1e-5
        )


def test_what_is_missing_is_said(finished, command, trained, tmp_path):
    done = command("evaluate")
    assert done.code == 2 and "one of --run DIR and --config FILE" in done.err
    done = command("evaluate", "--run", str(tmp_path))
    assert done.code == 2 and "config.yaml' is missing" in done.err
    done = command("evaluate", "--run", str(finished), "data.eval=null")
    assert done.code == 2 and "data.eval" in done.err
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    done = command("evaluate", "--run", str(tmp_path))
    assert done.code == 2 and "the run has not ended" in done.err

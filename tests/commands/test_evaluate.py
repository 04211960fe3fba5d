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


def test_evaluation_while_training_may_be_of_some_examples_and_begin_later(
    trained, command, files, records, metrics, tmp_path
):
    done = trained(
        "run",
        **{
            "data.eval": {"path": files["eval"]},
            "training.eval_on_start": False,
            "training.eval_max_examples": 4,
            "training.max_steps": 2,
        },
    )
    assert done.code == 0, done.err
    assert "  evaluated on 4 of 10 examples (training.eval_max_examples)" in done.out
    assert "evaluation of 4 of 10 examples after step 2: loss" in done.out
    (line,) = metrics(tmp_path / "run")[1]
    assert f"evaluation loss: {line['eval_loss']:.4f} after\n" in done.out
    path = tmp_path / "some.json"
    path.write_text(json.dumps([records[48 + number] for number in (0, 2, 5, 7)]))
    run = ["--run", str(tmp_path / "run"), "--json"]
    some = command("evaluate", *run, f"data.eval={{path: {path}}}")
    every = command("evaluate", *run)
    loss, tokens = (
        [json.loads(found.out)[name] for found in (some, every)]
        for name in ("eval_loss", "eval_tokens")
    )
    assert loss[0] == pytest.approx(line["eval_loss"], abs=1e-5)
    assert tokens[0] == line["eval_tokens"] < tokens[1]

"""The learning-rate range test, as a command and as `learning_rate: auto`."""

import json
import shutil

import numpy as np
import pytest
import yaml

from jaxpeft import optim
from jaxpeft.assembly import configuration
from jaxpeft.errors import InputError
from jaxpeft.lr_find import ramp

NEARLY = 1.0000001  # a range so narrow that its rate is constant
FULL = {"method": "full"}


@pytest.fixture
def lr_find(command, settings, tmp_path):
    """lr_find(name, *arguments, **settings): a range test for tmp_path / name."""

    def run(name, *arguments, **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        output = f"output_dir={tmp_path / name}"
        return command("lr_find", "--config", str(path), output, *arguments)

    return run


def lines(folder):
    return [json.loads(s) for s in (folder / "lr_find.jsonl").read_text().splitlines()]


CHOICES = {
    "accumulation": {"training.gradient_accumulation_steps": 2, "data.packing": True},
    "schedule-free": {"optimizer": {"name": "schedule_free_adamw"}},
    "fused": {"adapter": FULL, "optimizer": {"name": "adalomo"}},
}


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_it_takes_the_steps_of_the_run(changes, trained, metrics, tmp_path):
    """At a rate that stays the same the losses are those of training."""
    rate = 5e-3
    optimizer = {**changes.get("optimizer", {}), "learning_rate": rate}
    changes = {**changes, "optimizer": optimizer, "training.max_steps": 10}
    assert trained("run", **changes).code == 0
    cfg = configuration.open_config(tmp_path / "run.yaml", ["output_dir=unused"])
    curve = ramp.range_test(ramp.prepare(cfg), start=rate, stop=rate * NEARLY, steps=10)
    there = [line["loss"] for line in metrics(tmp_path / "run")[0]]
    np.testing.assert_allclose(curve.losses, there, rtol=1e-5)
    # The batches' losses before it: the first is that of the first step.
    assert curve.before[0] == pytest.approx(there[0], rel=1e-5)
    assert np.all(curve.before[5:] > curve.losses[5:])


@pytest.fixture
def steered(files):
    return {
        "data.eval": {"path": files["eval"]},
        "training.eval_steps": 4,
        "training.max_steps": 4,
        "schedule": {"name": "reduce_lr_on_plateau"},
        "optimizer": {"learning_rate": "auto"},
    }


def test_auto_trains_as_its_number_does(trained, lr_find, steered, tmp_path):
    """The test leaves the run as it was, records the rate, and resumes with it."""
    auto = trained("auto", **steered)
    assert auto.code == 0, auto.err
    folder = tmp_path / "auto"
    found = json.loads((folder / "lr_find.json").read_text())
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]
    assert recorded["learning_rate"] == found["suggestion"]
    assert found["suggestion"] == float(f"{found['candidates'][found['rule']]:.1e}")
    np.testing.assert_allclose(
        [line["learning_rate"] for line in lines(folder)],
        np.geomspace(1e-6, 1e-1, found["settings"]["steps"])[: len(lines(folder))],
        rtol=1e-4,
    )
    assert (folder / "lr_find.png").stat().st_size > 10_000

    number = {**steered, "optimizer": {"learning_rate": found["suggestion"]}}
    by_hand = trained("number", **number)
    assert by_hand.digest == auto.digest

    again = trained("auto", **{**steered, "training.max_steps": 4})
    assert again.code == 0, again.err
    assert "range test" not in again.out and again.digest == auto.digest

    # The command finds the same, and leaves a directory that holds a run alone.
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert lr_find("auto", **steered).code == 0
    assert {p: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert lines(folder / "lr_find") == lines(folder)


def test_a_run_may_start_where_only_a_range_test_was(lr_find, trained, tmp_path):
    arguments = "--steps=20", "--start=1e-5"
    found = lr_find("run", *arguments)
    assert found.code == 0, found.err
    line = found.out.splitlines()[-2]
    chosen = yaml.safe_load(line)["optimizer"]["learning_rate"]
    written = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert chosen == written["suggestion"]
    assert trained("run", "--resume", "never", **{"training.max_steps": 1}).code == 0


def test_what_is_scaled_with_the_batch_is_suggested_unscaled(lr_find, tmp_path):
    batch = {"training.batch_size": 8, "training.lr_reference_batch_size": 2}
    arguments = "--steps=20", "--start=1e-5"
    done = lr_find("run", *arguments, **batch, **{"training.lr_scaling": "linear"})
    assert done.code == 0, done.err
    assert "over 4, by which training.lr_scaling multiplies it" in done.out
    found = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    best = found["candidates"][found["rule"]]
    assert 4 * found["suggestion"] == pytest.approx(best, rel=0.05)


def test_a_curve_that_suggests_nothing_is_written_all_the_same(lr_find, tmp_path):
    done = lr_find("range", "--stop=2e-6", "--steps=10")
    assert done.code == 2 and "did not fall" in done.err and "--stop" in done.err
    assert [p.name for p in (tmp_path / "range").iterdir()] == ["lr_find.jsonl"]
    assert len(lines(tmp_path / "range")) == 10


@pytest.mark.parametrize(
    ("arguments", "changes", "problem"),
    [
        (["--start=1e-2", "--stop=1e-3"], {}, "--start, --stop: found 0.01 and 0.001"),
        (["--start=0"], {}, "--start, --stop: found 0"),
        (["--steps=3"], {}, "--steps: found 3; give 10 or more"),
        ([], {"optimizer": {"name": "prodigy"}}, "optimizer.name: found 'prodigy'"),
        (
            [],
            {"optimizer": {"name": "adafactor", "relative_step": True}},
            "optimizer.relative_step: found true",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused(arguments, changes, problem, lr_find):
    done = lr_find("range", *arguments, **changes)
    assert done.code == 2 and problem in done.err and done.err.count("\n") == 1


def test_auto_is_refused_where_nothing_chooses():
    with pytest.raises(InputError, match="lr_find"):
        optim.make({"learning_rate": "auto"}, {"name": "constant"}, 10)


def test_a_plan_needs_no_rate(command, settings, tmp_path):
    path = tmp_path / "auto.yaml"
    sizes = []
    for rate in ("auto", 1e-3):
        changes = {"optimizer": {"learning_rate": rate}, "output_dir": "none"}
        path.write_text(yaml.safe_dump(settings(**changes)))
        done = command("plan", "--config", str(path), "--json")
        assert done.code == 0, done.err
        plan = json.loads(done.out)
        sizes.append({k: v for k, v in plan.items() if "seconds" not in k})
    assert sizes[0] == sizes[1]


def test_a_resumed_auto_run_ends_as_a_straight_one(trained, steered, tmp_path):
    changes = {**steered, "training.max_steps": 8, "training.save_steps": 4}
    straight = trained("run", **changes)
    assert straight.code == 0, straight.err
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    again = trained("run", **changes)
    assert again.code == 0, again.err
    assert "continuing after step 4" in again.out and "range test" not in again.out
    assert again.digest == straight.digest


def test_the_command_carries_a_run_s_rate(command, root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    text = (root / "jaxpeft/assets/quickstart.yaml").read_text()
    (run / "config.yaml").write_text(text)
    scaled = ("training.lr_scaling=sqrt", "training.lr_reference_batch_size=4")
    done = command("lr_find", "--from", str(run), "training.batch_size=64", *scaled)
    # 0.01 x (64 / 16)^0.25 over sqrt(64 / 4), which lr_scaling gives.
    assert done.out.splitlines()[-1] == "optimizer: {learning_rate: 0.0035}"
    assert command("lr_find", "--from", str(tmp_path)).code == 2
    (run / "config.yaml").write_text(text.replace("1e-2", "auto"))
    assert command("lr_find", "--from", str(run)).code == 2
    with pytest.raises(SystemExit, match="2"):  # as argparse ends
        command("lr_find")

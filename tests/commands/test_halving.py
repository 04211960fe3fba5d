"""A sweep that drops points: its winner is a lone run, whatever interrupted it."""

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxpeft.assembly import configuration
from jaxpeft.sweep import stretches
from jaxpeft.sweep import sweep as sweeping
from jaxpeft.train import course, hooks

GRID = (
    *("--grid", "optimizer.learning_rate=1e-4,1e-3,1e-2"),
    *("--grid", "adapter.r=2,4"),
    *("--halving", "2"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory, settings, files):
    """config(**changes): a configuration file of 8 steps, evaluated every second."""

    def write(**changes):
        changes = {
            "data.eval": {"path": files["eval"]},
            "adapter.lora_dropout": 0.1,
            "training.max_steps": 8,
            "training.eval_steps": 2,
            "training.load_best_model_at_end": True,
            **changes,
        }
        path = tmp_path_factory.mktemp("config") / "sweep.yaml"
        path.write_text(yaml.safe_dump({**settings(**changes), "output_dir": "unused"}))
        return str(path)

    return write


def points(folder):
    """What was decided of each point, without what it took."""
    found = json.loads((folder / "sweep.json").read_text())["points"]
    return [{k: v for k, v in point.items() if k != "seconds"} for point in found]


def adapter(run):
    return load_file(run / "adapter" / "adapter_model.safetensors")


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line.get("loss", line.get("eval_loss"))) for line in lines]


@pytest.mark.slow
def test_the_winner_is_its_lone_run_and_resuming_decides_alike(
    command, config, tmp_path, monkeypatch
):
    path, straight, cut = config(), tmp_path / "straight", tmp_path / "cut"
    done = command("sweep", "--config", path, *GRID, "--out", str(straight))
    assert done.code == 0, done.err
    found = points(straight)
    states = [point["status"] for point in found]
    assert (states.count("done"), states.count("dropped")) == (1, 5)
    assert [len(p["scores"]) for p in found].count(2) == 3  # after steps 2 and 4
    assert "3 points in one program, up to step 4:" in done.out
    winner = states.index("done")
    rate, rank = found[winner]["values"].values()
    assert f"best: {found[winner]['name']}, best_eval_loss" in done.out

    lone = tmp_path / "lone"
    overrides = (f"optimizer.learning_rate={rate}", f"adapter.r={rank}")
    trained = command(
        "train",
        "--config",
        path,
        f"output_dir={lone}",
        *overrides,
        "training.samples=0",
    )
    assert trained.code == 0, trained.err
    mine = straight / "points" / f"{winner:02}"
    ours, theirs = losses(mine), losses(lone)
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    np.testing.assert_allclose(
        [loss for _, loss in ours], [loss for _, loss in theirs], rtol=1e-4
    )
    for name, value in adapter(lone).items():
        scale = np.abs(value).max()
        found_value = adapter(mine)[name]
        np.testing.assert_allclose(found_value, value, atol=1e-3 * scale + 1e-7)

    # Of a dropped point there is a page, and why; the lines end where it did.
    gone = straight / "points" / f"{states.index('dropped'):02}"
    assert (gone / "report.html").exists() and not (gone / "adapter").exists()
    why = found[states.index("dropped")]["why"]
    assert f"dropped: {found[states.index('dropped')]['name']}, {why}" in done.out
    for page in (straight / "report.html", gone / "report.html"):
        assert why in page.read_text()
    assert why in (straight / "sweep.csv").read_text()
    assert not any((straight / name).exists() for name in ("paused", "groups"))

    # Two places, ended at every kind of moment: the same is decided and trained.
    keep, save, call = stretches.keep, sweeping.Sweep.save, hooks.Save.__call__
    moments = []

    def ends(kind, number):
        moments.append(kind)
        if moments.count(kind) == number:
            raise KeyboardInterrupt

    def after_a_step(self, moment):
        call(self, moment)
        self._checkpoints.wait()
        ends("step", 3)

    def before_it_is_kept(*arguments):
        ends("keep", 4)
        keep(*arguments)

    def before_it_is_written(self):
        ends("save", 8)
        save(self)

    arguments = ("--config", path, *GRID, "--at-once", "2", "--out", str(cut))
    arguments = (*arguments, "training.save_steps=1")
    places = (
        (hooks.Save, "__call__", after_a_step),
        (stretches, "keep", before_it_is_kept),
        (sweeping.Sweep, "save", before_it_is_written),
    )
    for owner, name, replacement in places:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            assert command("sweep", *arguments).code == 130
    resumed = command("sweep", *arguments)
    assert resumed.code == 0, resumed.err
    for mine, other in zip(points(cut), points(straight), strict=True):
        for key in ("name", "status", "steps", "best_step"):
            assert mine[key] == other[key], key
        assert mine["scores"] == pytest.approx(other["scores"], rel=1e-4)
    again = command("sweep", *arguments)
    assert "all 6 points have ended: nothing to train" in again.out


@pytest.mark.slow
def test_what_no_program_can_share_is_halved_too(command, config, tmp_path, capfd):
    """Prodigy's points train by themselves, as `train` trains them, in stretches."""
    path, out = config(optimizer={"name": "prodigy"}), tmp_path / "out"
    grid = ("--grid", "adapter.lora_alpha=1,8", "--halving", "2")
    done = command("sweep", "--config", path, *grid, "--out", str(out))
    assert done.code == 0, done.err
    found = points(out)
    assert sorted(point["status"] for point in found) == ["done", "dropped"]
    winner = [point["status"] for point in found].index("done")
    alpha = found[winner]["values"]["adapter.lora_alpha"]
    lone = tmp_path / "lone"
    own = (f"adapter.lora_alpha={alpha}", f"output_dir={lone}")
    assert command("train", "--config", path, *own).code == 0
    mine = out / "points" / f"{winner:02}"
    assert losses(mine) == losses(lone)
    files = [run / "adapter" / "adapter_model.safetensors" for run in (mine, lone)]
    assert files[0].read_bytes() == files[1].read_bytes()

    # One that was dropped goes on as a run of its own, from where it was.
    gone = out / "points" / f"{1 - winner:02}"
    # Asked again for the step that it is at, it still pauses.
    course.train(configuration.open_config(str(gone / "config.yaml")), until=4)
    said = capfd.readouterr().out
    assert "paused after step 4" in said and "finished" not in said
    more = command("train", "--config", str(gone / "config.yaml"))
    assert more.code == 0 and "continuing after step 4" in more.out
    shutil.rmtree(gone)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--halving", "1"], "--halving: found 1; give 2 or more"),
        (["--halving", "3"], "give a factor of 2 or less, 3 points or more"),
        (["--halving", "2", "training.eval_steps=null"], "training.eval_steps is not"),
        (["--halving", "2", "training.eval_steps=8"], "set training.eval_steps=4 or"),
    ],
)
def test_what_cannot_be_halved_is_refused(command, config, arguments, said, tmp_path):
    out = tmp_path / "out"
    grid = ("--grid", "seed=1,2", "--grid", "adapter.r=2,4", "--out", str(out))
    done = command("sweep", "--config", config(), *grid, *arguments)
    assert done.code == 2 and said in done.err
    assert not out.exists()

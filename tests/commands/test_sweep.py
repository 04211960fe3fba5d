"""Sweeps: points that train in one program are what they would be alone."""

import csv
import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxpeft.sweep import joint_step
from jaxpeft.train import hooks

STEPS = 6
GRID = {
    "optimizer.learning_rate": [1e-3, 1e-2],
    "seed": [1, 2],
}


@pytest.fixture
def sweep(command, settings, files, tmp_path):
    """sweep(*arguments, **changes): the command on tmp_path / "run"'s configuration."""

    def run(*arguments, **changes):
        changes = {
            "data.eval": {"path": files["eval"]},
            "training.max_steps": STEPS,
            "training.eval_steps": 3,
            "output_dir": str(tmp_path / "run"),
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(settings(**changes)))
        return command("sweep", "--config", str(path), *arguments)

    return run


@pytest.fixture
def alone(command, tmp_path):
    """alone(name, *overrides): a lone run with the sweep's configuration."""

    def run(name, *overrides):
        output = f"output_dir={tmp_path / name}"
        done = command(
            "train", "--config", str(tmp_path / "sweep.yaml"), output, *overrides
        )
        assert done.code == 0, done.err
        return tmp_path / name

    return run


def lines(run):
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def written(run):
    return run / "adapter" / "adapter_model.safetensors"


def adapter_config(run):
    return json.loads((run / "adapter" / "adapter_config.json").read_text())


def is_the_same(point, lone):
    """Metrics and adapter of a point, against those of a lone run."""
    ours, theirs = lines(point), lines(lone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs):
        assert mine.keys() == other.keys()
        assert mine.get("tokens") == other.get("tokens")
        assert mine.get("learning_rate") == other.get("learning_rate")
        for name in {"loss", "eval_loss", "grad_norm"} & mine.keys():
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name
    mine, other = (load_file(written(run)) for run in (point, lone))
    for name, value in other.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(mine[name], value, atol=1e-3 * scale + 1e-7)
    assert adapter_config(point) == adapter_config(lone)


def test_points_of_one_program_are_their_lone_runs(sweep, alone, monkeypatch, tmp_path):
    """Everything that a program can carry, at once."""
    arguments = [
        *("--grid", "optimizer.learning_rate=1e-3,1e-2"),
        *("--grid", "seed=1,2"),
        *("--grid", "adapter.lora_alpha=8,4"),
    ]
    changes = {
        "adapter.lora_dropout": 0.1,
        "training.gradient_accumulation_steps": 2,
        "optimizer.weight_decay": 0.1,
    }
    done = sweep(*arguments, **changes)
    assert done.code == 0, done.err
    assert "8 points in one program" in done.out
    folder = tmp_path / "run-sweep"
    state = json.loads((folder / "sweep.json").read_text())
    assert state["axes"] == {**GRID, "adapter.lora_alpha": [8, 4]}
    assert {point["status"] for point in state["points"]} == {"done"}
    assert state["points"][6]["values"] == {
        "optimizer.learning_rate": 1e-2,
        "seed": 2,
        "adapter.lora_alpha": 8,
    }
    for number in (1, 6):  # between them every value of every axis
        point = state["points"][number]
        overrides = [f"{key}={value}" for key, value in point["values"].items()]
        lone = alone(f"alone-{number}", *overrides)
        is_the_same(folder / point["directory"], lone)
        # What the point's own configuration says repeats it too.
        own = yaml.safe_load((folder / point["directory"] / "config.yaml").read_text())
        their = yaml.safe_load((lone / "config.yaml").read_text())
        assert own.pop("output_dir") != their.pop("output_dir")
        assert own == their

    with (folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    losses = [float(row["eval_loss"]) for row in table]
    assert losses == sorted(losses) and len(losses) == 8
    assert table[0]["optimizer.learning_rate"] == "0.01"
    assert "best: learning_rate=0.01" in done.out

    # As on an accelerator: all points in each product.
    monkeypatch.setattr(joint_step, "side_by_side", lambda: True)
    few = [*arguments[:3], "seed=1,2", "--out", str(tmp_path / "beside")]
    beside = sweep(*few, **changes)
    assert beside.code == 0, beside.err
    is_the_same(tmp_path / "beside" / "points" / "03", tmp_path / "alone-6")

    before = done.out[done.out.index("rank") :]
    again = sweep(*arguments, **changes)
    assert again.code == 0 and "in one program" not in again.out
    assert again.out[again.out.index("rank") :] == before


@pytest.mark.parametrize(
    "changes",
    [
        {"data.packing": True, "optimizer": {"name": "adamw_8bit"}},
        {"optimizer": {"name": "schedule_free_adamw"}},
        {"adapter": {"method": "vera", "r": 4}, "model.quantization": "int8"},
    ],
    ids=["packed, 8 bits", "schedule-free", "VeRA over int8"],
)
def test_other_methods_share_a_program_too(sweep, alone, changes, tmp_path):
    """Points of two seeds and rates, of which one is compared."""
    done = sweep(
        "--grid", "optimizer.learning_rate=1e-3,1e-2", "--grid", "seed=1,2", **changes
    )
    assert done.code == 0, done.err
    assert "4 points in one program" in done.out
    lone = alone("alone", "optimizer.learning_rate=1e-2", "seed=2")
    is_the_same(tmp_path / "run-sweep" / "points" / "03", lone)


@pytest.fixture(scope="session")
def wide(tmp_path_factory, make_torch, tiny):
    """The folder of a model whose matrices have room for a rank of 64."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    sizes = {"hidden_size": 64, "intermediate_size": 72, "num_key_value_heads": 4}
    made = make_torch(vocab_size=4096, initializer_range=0.1, **sizes)
    made.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    return folder


@pytest.mark.slow
def test_ranks_share_a_program_padded_with_zeros(sweep, alone, wide, tmp_path):
    changes = {
        "model.path": str(wide),
        "adapter.lora_dropout": 0.1,
        "adapter.use_rslora": True,
        "adapter.rank_pattern": {"layers.0.self_attn.q_proj": 2},
        "optimizer.weight_decay": 0.1,
        "training.load_best_model_at_end": True,
    }
    done = sweep("--grid", "adapter.r=4,16,64", **changes)
    assert done.code == 0, done.err
    assert "3 points in one program" in done.out
    for number, rank in enumerate((4, 16, 64)):
        lone = alone(f"alone-{rank}", f"adapter.r={rank}")
        point = tmp_path / "run-sweep" / "points" / f"{number:02}"
        is_the_same(point, lone)
        assert adapter_config(point)["r"] == rank
        shapes = {x.shape for x in load_file(written(point)).values()}
        assert {(rank, 64), (2, 64), (64, rank), (72, rank)} <= shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter", [{"method": "dora"}, {"init_lora_weights": "pissa"}], ids=str
)
def test_other_adapters_are_padded_too(sweep, alone, adapter, tmp_path):
    changes = {"adapter": {"target_modules": ["v_proj"], "r": 4, **adapter}}
    done = sweep("--grid", "adapter.r=8,3", **changes)
    assert done.code == 0, done.err
    assert "2 points in one program" in done.out
    is_the_same(tmp_path / "run-sweep" / "points" / "01", alone("alone", "adapter.r=3"))


def test_schedules_and_decays_share_a_program(sweep, alone, tmp_path):
    changes = {"schedule": {"name": "cosine", "warmup_steps": 1}}
    done = sweep(
        *("--grid", "schedule.name=cosine,linear"),
        *("--grid", "optimizer.weight_decay=0.0,0.3"),
        **changes,
    )
    assert done.code == 0, done.err
    assert "4 points in one program" in done.out
    lone = alone("alone", "schedule.name=linear", "optimizer.weight_decay=0.3")
    is_the_same(tmp_path / "run-sweep" / "points" / "03", lone)


def test_an_interrupted_sweep_goes_on(sweep, monkeypatch, tmp_path):
    arguments = ("--grid", "optimizer.learning_rate=1e-3,1e-2")
    changes = {"training.save_steps": 2, "adapter.lora_dropout": 0.1}
    straight = sweep(*arguments, "--out", str(tmp_path / "straight"), **changes)
    assert straight.code == 0, straight.err
    save = hooks.Save.__call__

    def interrupted(self, moment):
        save(self, moment)
        if moment.step == 5:
            self._checkpoints.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hooks.Save, "__call__", interrupted)
        assert sweep(*arguments, **changes).code == 130
    state = json.loads((tmp_path / "run-sweep" / "sweep.json").read_text())
    assert [point["status"] for point in state["points"]] == ["running"] * 2

    other = sweep(*arguments, **{**changes, "data.max_length": 9})
    assert other.code == 2
    assert "holds a sweep with other settings (data.max_length)" in other.err

    # A further value joins those that are under way, in a program of its own.
    further = ("--grid", "optimizer.learning_rate=1e-2,2e-2")
    done = sweep(*further, **changes)
    assert done.code == 0, done.err
    assert "continuing after step 4" in done.out
    assert "point 02: learning_rate=0.02" in done.out
    again = sweep(*further, **changes)
    assert "all 3 points have ended: nothing to train" in again.out
    for number in ("00", "01"):
        ours, theirs = (
            tmp_path / name / "points" / number for name in ("run-sweep", "straight")
        )
        is_the_same(ours, theirs)
        files = [
            run / "adapter" / "adapter_model.safetensors" for run in (ours, theirs)
        ]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_points_stop_and_diverge_each_for_itself(sweep, alone, metrics, tmp_path):
    changes = {
        "training.max_steps": 8,
        "training.eval_steps": 1,
        "training.early_stopping_patience": 3,
        "training.max_nonfinite_steps": 0,
        "optimizer.max_grad_norm": None,
        "optimizer.name": "sgd",
    }
    # With an alpha of 1e38 the gradient's norm is beyond what float32 can hold.
    grids = ("--grid", "optimizer.learning_rate=0.0,0.1", "--grid")
    done = sweep(*grids, "adapter.lora_alpha=8,1e38", **changes)
    assert done.code == 0, done.err
    folder = tmp_path / "run-sweep"
    points = json.loads((folder / "sweep.json").read_text())["points"]
    ends = [point["status"] for point in points]
    assert ends == ["stopped early", "diverged", "done", "diverged"]
    assert points[0]["best_step"] == 1
    steps = [line["step"] for line in metrics(folder / "points" / "00")[0]]
    assert steps == [1, 2, 3, 4]
    lone = alone("alone", "optimizer.learning_rate=0.0")
    is_the_same(folder / "points" / "00", lone)
    lone = alone("other", "optimizer.learning_rate=0.1")
    is_the_same(folder / "points" / "02", lone)
    assert not (folder / "points" / "03" / "adapter").exists()
    table = done.out[done.out.index("rank") :].splitlines()
    assert "diverged" not in table[2] and "diverged" in table[3]


def test_a_schedule_that_evaluations_steer_is_each_points_own(sweep, command, tmp_path):
    schedule = {"name": "reduce_lr_on_plateau", "patience": 0, "threshold": 0.9}
    changes = {"schedule": schedule, "training.eval_steps": 1, "training.samples": 1}
    done = sweep("--grid", "seed=1,2", **changes)
    assert done.code == 0, done.err
    assert "2 points in one program" in done.out
    lone, point = tmp_path / "alone", tmp_path / "run-sweep" / "points" / "01"
    config = str(tmp_path / "sweep.yaml")
    done = command("train", "--config", config, "seed=2", f"output_dir={lone}")
    assert done.code == 0, done.err
    is_the_same(point, lone)
    assert lines(lone)[-2]["learning_rate"] < 1e-2
    assert "the learning rate goes from 1.00e-02 to 1.00e-03" in done.out
    # What it said before training is there too.
    (ours,), (theirs,) = (
        json.loads((run / "samples.json").read_text()) for run in (point, lone)
    )
    assert ours["before"] == theirs["before"] and len(ours["before"]) > 1


def test_what_no_program_can_share_trains_in_turn(sweep, tmp_path):
    changes = {
        "training.max_steps": None,
        "training.num_epochs": 1,
        "training.eval_steps": 1,
        "training.early_stopping_patience": 1,
        "optimizer.learning_rate": 0.0,
    }
    changes["optimizer.name"] = "muon"
    done = sweep("--grid", "adapter.r=2,4", **changes)
    assert done.code == 0, done.err
    assert "muon looks at more than the element" in done.out
    state = json.loads((tmp_path / "run-sweep" / "sweep.json").read_text())
    assert {point["status"] for point in state["points"]} == {"stopped early"}
    assert "point 00: r=2" in done.out and "point 01: r=4" in done.out
    points = tmp_path / "run-sweep" / "points"
    ranks = [adapter_config(points / number)["r"] for number in ("00", "01")]
    assert ranks == [2, 4]


def test_optuna_chooses_the_points(sweep, tmp_path):
    arguments = [
        *("--search", "optuna", "--trials", "3", "--at-once", "2"),
        *("--space", "optimizer.learning_rate=log:1e-5:1e-1"),
        *("--space", "seed=1,2"),
    ]
    done = sweep(*arguments, **{"training.max_steps": 2})
    assert done.code == 0, done.err
    state = json.loads((tmp_path / "run-sweep" / "sweep.json").read_text())
    rates = [point["values"]["optimizer.learning_rate"] for point in state["points"]]
    assert len(set(rates)) == 3 and all(1e-5 <= rate <= 1e-1 for rate in rates)
    assert {point["values"]["seed"] for point in state["points"]} <= {1, 2}
    # What had been chosen is not chosen anew.
    again = sweep(*arguments, **{"training.max_steps": 2})
    assert again.code == 0 and "\npoint" not in again.out.split("rank")[0]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "--grid: is missing"),
        (["--grid", "optimizer.learning_rate"], "write section.key=value,value,..."),
        (["--grid", "optimizer.lr=1e-4"], "optimizer.lr"),
        (["--grid", "seed=1,1"], "names a value twice"),
        (["--grid", "seed=1", "--grid", "seed=2"], "is given twice"),
        (["--grid", "output_dir=a,b"], "--out DIR"),
        (["--grid", "seed=1,x"], "seed=x: seed"),
        (
            ["--grid", "adapter.target_modules=[q_proj],'[q_proj,v_proj]'"],
            "'[q_proj,v_proj]' matches no linear module",
        ),
        (["--grid", "seed=1,2", "--at-once", "0"], "--at-once: found 0"),
        (["--search", "optuna"], "needs --space"),
        (["--search", "optuna", "--space", "seed=log:0:1"], "both above 0"),
        (["--search", "optuna", "--space", "seed=1"], "uniform:LOW:HIGH"),
        (
            ["--search", "optuna", "--space", "seed=1,2", "--space", "seed=int:3:9"],
            "--space seed: is given twice",
        ),
        (["--search", "optuna", "--space", "output_dir=a,b"], "--out DIR"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(sweep, arguments, said, tmp_path):
    done = sweep(*arguments)
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "run-sweep").exists()

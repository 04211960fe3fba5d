"""Runs that compare answers: from their commands to files, and on other devices."""

import json
import math

import jax
import numpy as np
import pytest

from jaxpeft.assembly import configuration
from jaxpeft.assembly.run import Run
from jaxpeft.config.sections import ObjectiveSection
from jaxpeft.data import store
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.lr_find import ramp
from jaxpeft.objectives.objective import REFERENCE
from jaxpeft.plan.step import Step
from jaxpeft.sweep import grid

from .conftest import write_config
from .test_sweep import is_the_same

DPO = {"name": "dpo", "beta": 0.3, "sft_weight": 0.1}
BEFORE = {**DPO, "precompute_reference": True}
KTO = {"name": "kto", "undesirable_weight": 0.8}
KTO_BEFORE = {**KTO, "precompute_reference": True}


@pytest.fixture(scope="session")
def changes(pairs):
    """changes(objective, **settings): what makes a configuration one of it."""

    def make(objective, **more):
        steps = {"training.max_steps": 4, "training.eval_steps": 2}
        sources = pairs[objective["name"]]
        return {"objective": objective, **sources, **steps, **more}

    return make


@pytest.fixture
def opened(settings, changes, tmp_path):
    """opened(objective, **settings): a configuration."""

    def read(objective, **more):
        own = settings(**changes(objective, **more))
        path = write_config(tmp_path / "opened.yaml", own)
        return configuration.open_config(path, [f"output_dir={tmp_path / 'opened'}"])

    return read


def figures(lines):
    """What a run logged of its steps or evaluations, the clock left out."""
    clock = {"tokens_per_second", "data_wait", "mfu"}
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def near(ours, theirs, rtol, atol=0.0):
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(figures(ours), figures(theirs), strict=True):
        assert mine.keys() == other.keys()
        nothing = {name for name in mine if other[name] is None}
        assert nothing == {name for name in mine if mine[name] is None}
        for name in mine.keys() - nothing:  # a batch of kto may have one label alone
            np.testing.assert_allclose(mine[name], other[name], rtol, atol, name)


@pytest.mark.parametrize("objective", [DPO, KTO], ids=["dpo", "kto"])
def test_a_run_is_evaluated_as_it_said(
    objective, trained, changes, command, metrics, tmp_path
):
    """And with its reference computed before, it is the same run."""
    done = trained("run", **changes(objective))
    assert done.code == 0, done.err
    lines, evaluations = metrics(tmp_path / "run")
    assert abs(lines[0]["rewards/margins"]) < 1e-5
    assert abs(evaluations[-1]["eval_rewards/margins"]) > 1e-3  # it moves
    said = command("evaluate", "--run", str(tmp_path / "run"), "--json")
    assert said.code == 0, said.err
    result = json.loads(said.out)
    for name in ("eval_loss", "eval_rewards/margins", "eval_logps/rejected"):
        assert result[name] == pytest.approx(evaluations[-1][name], rel=1e-5), name

    before = {**objective, "precompute_reference": True}
    done = trained("before", **changes(before))
    assert done.code == 0, done.err
    assert "reference (training data):" in done.out and "computed" in done.out
    others = metrics(tmp_path / "before")
    assert others[0][0]["loss"] == pytest.approx(lines[0]["loss"], rel=2e-6)
    near(others[0], lines, 1e-4, 2e-5)
    near(others[1], evaluations, 1e-4, 2e-5)
    said = command("evaluate", "--run", str(tmp_path / "before"), "--json")
    assert json.loads(said.out)["eval_loss"] == pytest.approx(
        result["eval_loss"], rel=1e-4
    )


def test_what_was_computed_before_is_read_at_the_next_start(opened, tmp_path, capfd):
    """By what decides it, and not by what does not."""
    folder = {"data.cache_dir": str(tmp_path / "kept")}

    def column(**more):
        capfd.readouterr()
        run = Run(opened(**{"objective": BEFORE} | more, **folder))
        (told,) = {
            line.rsplit(" ", 1)[-1]
            for line in capfd.readouterr().out.splitlines()
            if "log-probabilities of the reference" in line
        }
        return told, run.batches.examples.columns[REFERENCE]

    told, first = column()
    assert told == "computed" and np.all(first < -1) and len(first) == 32
    listed = store.kept(tmp_path / "kept")
    assert sorted(one.examples for one in listed) == [12, 32]
    assert all("of the reference" in one.path for one in listed)
    told, again = column()
    assert told == "back"
    np.testing.assert_array_equal(again, first)
    same = {"objective": {**BEFORE, "beta": 0.9}, "seed": 3, "adapter.r": 2}
    told, again = column(**same)
    assert told == "back"
    np.testing.assert_array_equal(again, first)
    start = {"objective": {**BEFORE, "reference": "start"}}
    for other in (start, {**start, "seed": 3}, {"data.max_length": 64}):
        assert column(**other)[0] == "computed", other
    assert column(**start)[0] == "back"
    # Of a store that was damaged nothing is taken.
    for file in (tmp_path / "kept").glob("*/values.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    told, again = column()
    assert told == "computed"
    np.testing.assert_array_equal(again, first)


def test_a_folder_that_cannot_be_written_is_a_warning(opened, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    run = Run(opened(BEFORE, **{"data.cache_dir": str(tmp_path / "file")}))
    assert "are not stored in" in capfd.readouterr().err
    assert np.isfinite(run.batches[0][REFERENCE]).all()


def test_a_reference_that_cannot_be_computed_before(opened, monkeypatch):
    streamed = {"data.streaming": True}
    with pytest.raises(InputError, match="found true with data.streaming"):
        Run(opened(BEFORE, **streamed))
    with pytest.raises(InputError, match="found true with reference none"):
        Run(opened({**BEFORE, "reference": "none"}))


def test_some_of_the_evaluation_data_are_some_of_the_reference_s(opened):
    run = Run(opened(BEFORE, **{"training.eval_max_examples": 2}))
    own = run.evaluation.examples.columns[REFERENCE]
    assert np.isfinite(own).sum() == 4 and len(own) == 12
    for batch in run.evaluation:
        assert np.isfinite(batch[REFERENCE]).all()


@pytest.mark.parametrize("objective", [DPO, KTO], ids=["dpo", "kto"])
def test_over_a_base_in_four_bits_the_first_step_is_at_the_reference(
    objective, opened, asset_model
):
    """So that its losses are those of a log-ratio of 0."""
    own = {**objective, "sft_weight": 0} if objective is DPO else objective
    model = {"path": str(asset_model), "dtype": "float32", "quantization": "nf4"}
    run = Run(opened(own, model=model))
    batch = run.micro_batches(run.batches[0])
    step = jax.jit(run.train_step())
    _, metrics = step(run.initial_state(), run.fixed, batch)
    wanted = np.asarray(batch["label"]).ravel() if objective is KTO else None
    expected = math.log(2) if wanted is None else np.mean(0.5 - 0.1 * (wanted < 1))
    np.testing.assert_allclose(metrics["loss"], expected, atol=1e-5)
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("objective", [BEFORE, KTO, KTO_BEFORE], ids=str)
def test_a_plan_is_of_the_batches_that_a_run_has(objective, opened):
    cfg = opened(objective)
    planned = Step(cfg, sharding.make_mesh(), widened=False)
    run = Run(cfg)
    batch = run.micro_batches(run.batches[0])
    assert {n: x.dtype for n, x in planned.batch.items()} == {
        n: x.dtype for n, x in batch.items()
    }
    shapes = [
        [x.shape for x in jax.tree.leaves(y)] for y in (run.held, planned.frozen.held)
    ]
    assert shapes[0] == shapes[1]


def test_points_whose_references_differ_have_programs_of_their_own(opened):
    """A new adapter, drawn by each point's seed, may be a reference."""
    for reference, programs in (("start", [[0], [1]]), ("adapter_off", [[0, 1]])):
        objective = {**BEFORE, "reference": reference}
        points = [opened(objective, seed=seed) for seed in (1, 2)]
        assert grid.together(points, 1, None) == programs


def test_a_step_holds_no_second_copy_of_the_base(opened, asset_model):
    """By the compiler, beside a step of sft over as many rows."""
    more = {"model": {"path": str(asset_model), "dtype": "float32"}}
    more |= {"data.max_length": 64}
    cfg = opened(DPO, **more)
    sft = cfg.model_copy(update={"objective": ObjectiveSection(name="sft")})
    used, base = [], 0
    for one in (sft, cfg, opened(KTO, **more)):
        step = Step(one, sharding.make_mesh(), widened=False)
        memory, base = step.build()[1].memory_analysis(), 4 * step.base
        used.append(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    assert max(used) < used[0] + base / 8, (used, base)


@pytest.mark.parametrize("objective", [DPO, KTO], ids=["dpo", "kto"])
def test_a_range_test_steps_as_the_run_would(objective, opened):
    """From where the model is its reference; of kto half of the labels' weights."""
    own = {**DPO, "sft_weight": 0} if objective is DPO else KTO
    most = math.log(2) if objective is DPO else 0.5
    least = most if objective is DPO else 0.4
    curve = ramp.range_test(ramp.prepare(opened(own)), steps=10, start=1e-6, stop=1e-2)
    assert least - 1e-5 < curve.losses[0] < most + 1e-5
    assert np.ptp(curve.losses) > 1e-3


def test_layers_updated_in_the_backward_pass(opened):
    """With the reference computed before, for which one pass is enough."""
    whole = {"adapter": {"method": "full"}, "optimizer": {"name": "adalomo"}}
    fused = {**whole, "training.fused_backward": True}
    for objective in (DPO, KTO, KTO_BEFORE):
        with pytest.raises(InputError, match="more than one pass") as refused:
            Run(opened(objective, **fused))
        assert ("precompute_reference" in str(refused.value)) == (objective is DPO)
    losses = []
    for more in (fused, {**whole, "training.fused_backward": False}):
        run = Run(opened(BEFORE, **more))
        assert (run.updates.leafwise is not None) == more["training.fused_backward"]
        state, step = run.initial_state(), jax.jit(run.train_step())
        for number in range(2):
            batch = run.micro_batches(run.batches[number])
            state, metrics = step(state, run.fixed, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
def test_eight_devices_take_the_steps_of_one(
    command, settings, changes, metrics, on_eight, tmp_path
):
    objectives = {"dpo": DPO, "before": BEFORE, "kto": KTO}
    for name, objective in objectives.items():
        more = {"training.batch_size": 16, "training.max_steps": 3}
        for many in (False, True):
            mesh = {"data": 4, "fsdp": 2} if many else {}
            own = {"mesh": mesh, "output_dir": str(tmp_path / f"{name}-{many:d}")}
            path = tmp_path / f"{name}-{many:d}.yaml"
            write_config(path, settings(**changes(objective, **more, **own)))
            if many:
                on_eight(path)
            else:
                done = command("train", "--config", str(path))
                assert done.code == 0, done.err
    for name in objectives:
        one, many = (metrics(tmp_path / f"{name}-{n}") for n in (0, 1))
        for ours, theirs in zip(many, one, strict=True):
            losses = [
                [line.get("loss", line.get("eval_loss")) for line in side]
                for side in (ours, theirs)
            ]
            np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", [DPO, BEFORE, KTO], ids=str)
def test_a_sweep_over_beta_is_its_lone_runs(
    objective, command, settings, changes, tmp_path
):
    output = {"output_dir": str(tmp_path / "run")}
    path = write_config(tmp_path / "run.yaml", settings(**changes(objective, **output)))
    done = command("sweep", "--config", str(path), "--grid", "objective.beta=0.1,0.8")
    assert done.code == 0, done.err
    assert "2 points in one program" in done.out
    folder = tmp_path / "run-sweep"
    state = json.loads((folder / "sweep.json").read_text())
    ends = []
    for number, point in enumerate(state["points"]):
        lone = tmp_path / f"alone-{number}"
        beta = f"objective.beta={point['values']['objective.beta']}"
        done = command("train", "--config", str(path), f"output_dir={lone}", beta)
        assert done.code == 0, done.err
        is_the_same(folder / point["directory"], lone)
        ends.append((lone / "metrics.jsonl").read_text())
    assert ends[0] != ends[1]

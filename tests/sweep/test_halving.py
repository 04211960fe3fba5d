"""Successive halving: after which steps, who is dropped, and what is refused."""

import itertools
import json
import math
import random

import pytest
import yaml

from jaxpeft.assembly import configuration
from jaxpeft.errors import InputError
from jaxpeft.sweep import grid, halving
from jaxpeft.sweep import sweep as sweeping
from jaxpeft.sweep.halving import Halving
from jaxpeft.sweep.point import Point

RATE = "optimizer.learning_rate"
CONFIG = {
    "output_dir": "runs/none",
    "model": {"path": "nowhere", "dtype": "float32"},
    "data": {"train": {"path": "train.json"}, "eval": {"path": "eval.json"}},
    "training": {"max_steps": 90, "eval_steps": 5},
}


@pytest.fixture
def sweep(tmp_path):
    """sweep(axes, *overrides): a sweep that drops points; nothing of it is opened."""

    def make(axes, *overrides, factor=3):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(CONFIG))
        folder = tmp_path / "sweep"
        made = sweeping.Sweep(str(path), overrides, folder, axes, None, factor)
        made.add(grid.points(axes))
        return made

    return make


def rates(count):
    return [1e-4 * (n + 1) for n in range(count)]


@pytest.mark.parametrize(
    "factor, count, last, every, steps",
    [
        (3, 9, 90, 5, [10, 30]),
        (3, 26, 90, 5, [10, 30]),  # the last of three rungs would need 27
        (3, 27, 270, 10, [10, 30, 90]),
        (2, 4, 8, 2, [2, 4]),
        (2, 5, 100, 8, [32, 56]),  # at the evaluation that is next
        (4, 4, 7, 1, [2]),
    ],
)
def test_rungs_are_at_evaluations(sweep, factor, count, last, every, steps):
    made = sweep({RATE: rates(count)}, factor=factor)
    overrides = (f"training.max_steps={last}", f"training.eval_steps={every}")
    cfg = configuration.open_config(made.source, overrides)
    found = Halving.of(factor, made.points)
    assert found.steps(cfg, halving.Lengths().of(cfg)) == steps


def test_steps_of_epochs_are_those_of_the_data(tmp_path):
    record = {"instruction": "How is it?", "output": "Fine."}
    (tmp_path / "few.json").write_text(json.dumps([record] * 20))
    overrides = (
        *("training.num_epochs=1.5", "training.max_steps=null"),
        *("training.batch_size=8", f"data.train={{path: {tmp_path / 'few.json'}}}"),
    )
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", overrides)
    assert halving.Lengths().of(cfg) == math.ceil(1.5 * 20 / 8)


@pytest.mark.parametrize(
    "axes, overrides, said",
    [
        ({RATE: rates(2)}, (), "found 3 with 2 points"),
        ({RATE: rates(2), "seed": [1, 2, 3]}, (), "with 2 points (seeds count as one)"),
        (
            {RATE: rates(3)},
            ("data.eval=null", "training.eval_steps=null"),
            "and data.eval is not set",
        ),
        (
            {RATE: rates(3)},
            ("training.eval_steps=null",),
            "and training.eval_steps is not set",
        ),
        (
            {RATE: rates(9)},
            ("training.eval_steps=45",),
            "after about 10 and 30 of 90 steps, and with training.eval_steps 45 the "
            "evaluations there are after 45, 45; set training.eval_steps=10 or less",
        ),
        (
            {RATE: rates(9)},
            ("training.max_steps=2", "training.eval_steps=1"),
            "train for 9 steps or more",
        ),
        ({RATE: rates(3)}, ("training.max_steps=5",), "set training.eval_steps=1 or"),
    ],
)
def test_what_cannot_be_halved_is_refused(sweep, axes, overrides, said):
    made = sweep(axes, *overrides)
    with pytest.raises(InputError) as error:
        halving.prepare(made, 3)
    assert said in error.value.problems[0] and len(error.value.problems) == 1


@pytest.mark.parametrize(
    "name, way",
    [
        ("dpo", "metric_for_best_model=rewards/accuracies, or leave --halving out"),
        ("kto", "leave --halving out and compare the answers that they give"),
    ],
)
def test_points_are_not_dropped_by_unlike_losses(sweep, name, way):
    axes = {"objective.beta": [0.1, 0.2, 0.3], RATE: rates(2)}
    objective = f"objective.name={name}"
    with pytest.raises(InputError) as error:
        halving.prepare(sweep(axes, objective), 3)
    (said,) = error.value.problems
    assert said.startswith("--halving: objective.beta: another value is another loss")
    assert said.endswith(way)


def test_points_are_not_dropped_by_losses_of_two_objectives(sweep):
    with pytest.raises(InputError, match="--halving: objective.name: another value"):
        halving.prepare(sweep({"objective.name": ["orpo", "cpo", "simpo"]}), 3)


def test_a_figure_that_unlike_losses_share_drops_points(sweep):
    axes = {"objective.beta": [0.1, 0.2, 0.3]}
    metric = "training.metric_for_best_model=rewards/accuracies"
    halving.prepare(sweep(axes, "objective.name=dpo", metric), 3)


def test_one_value_for_all_points_is_one_loss(sweep):
    axes = {"objective.beta": [0.1], RATE: rates(3)}
    halving.prepare(sweep(axes, "objective.name=dpo"), 3)


@pytest.mark.parametrize(
    "key, values, said",
    [
        ("training.max_steps", [90, 180], "10, 30 against 20, 60); take the key"),
        ("training.eval_steps", [5, 9], "10, 30 against 18, 36); take the key"),
    ],
)
def test_points_that_meet_at_unlike_steps_are_refused(sweep, key, values, said):
    made = sweep({RATE: rates(5), key: values})
    with pytest.raises(InputError) as error:
        halving.prepare(made, 3)
    (told,) = error.value.problems
    assert told.startswith(f"--halving: {key}: points of other") and said in told
    assert not made.directory.exists()


def test_batches_of_another_size_are_refused_where_epochs_count(sweep, monkeypatch):
    monkeypatch.setattr(
        halving, "_steps_per_epoch", lambda cfg: 720 / cfg.training.batch_size
    )
    axes = {RATE: rates(5), "training.batch_size": [4, 8]}
    epochs = ("training.max_steps=null", "training.num_epochs=1")
    with pytest.raises(InputError, match="set training.max_steps for all") as error:
        halving.prepare(sweep(axes, *epochs), 3)
    assert error.value.problems[0].startswith("--halving: training.batch_size: points")
    halving.prepare(sweep(axes), 3)  # steps are given


def test_later_points_meet_the_earlier_ones_at_their_steps(sweep):
    made = sweep({RATE: rates(9), "training.max_steps": [90]})
    halving.prepare(made, 3)
    for point in made.points:
        point.status, point.scores, point.steps = "dropped", [1.0], 10
    made.save()
    grown = sweep({RATE: rates(9), "training.max_steps": [180]})
    with pytest.raises(InputError, match="--halving: training.max_steps: points of"):
        halving.prepare(grown, 3)


def test_a_lone_point_whose_paused_state_is_lost_is_told(sweep, monkeypatch, capsys):
    made = sweep({RATE: rates(3)}, "optimizer.offload=true")
    monkeypatch.setattr(sweeping.course, "train", lambda cfg, until: None)
    folders = [made.directory / point.directory for point in made.points]
    made.points[1].steps = made.points[2].steps = 10
    (folders[2] / "checkpoints/10").mkdir(parents=True)
    made.train(made.points)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folders[1] / 'checkpoints'}: the paused state is missing" in line


def simulated(points, judge, plan, loss, turn=0):
    """Goes through the rungs as training would, and decides twice, as if killed."""
    for rung in range(plan.rungs):
        for point in points:
            if point.turn == turn and len(point.scores) == rung and not point.ended:
                point.scores.append(loss(point, rung))
                point.eval_loss, point.steps = point.scores[-1], 10 * 3**rung
        for again in range(2):
            gone = halving.drop(points, rung, turn, judge, plan)
            assert not again or not gone
    for point in points:
        if point.turn == turn and not point.ended:
            point.status, point.eval_loss = "done", loss(point, plan.rungs)


def test_one_of_so_many_goes_on_and_the_reason_is_said(sweep):
    made = sweep({RATE: rates(9)})
    plan = Halving.of(3, made.points)
    best = {5: 1.0, 2: 1.1, 7: 1.2}  # by number; the others are worse

    def loss(point, rung):
        number = made.points.index(point)
        return best.get(number, 2.0 + number) - 0.1 * rung

    simulated(made.points, made.judge, plan, loss)
    states = [point.status for point in made.points]
    assert states.count("dropped") == 8 and states[5] == "done"
    assert [len(made.points[n].scores) for n in (0, 2, 5, 7, 8)] == [1, 2, 2, 2, 1]
    assert made.points[8].why == (
        "after step 10: eval_loss 10.0000, place 9 of 9; the best 3 went on"
    )
    assert made.points[2].why == (
        "after step 30: eval_loss 1.0000, place 2 of 3; the best went on"
    )
    # The farther it came, the better, whatever the loss of an earlier step.
    order = [made.points.index(point) for point in made.ranking()]
    assert order == [5, 2, 7, 0, 1, 3, 4, 6, 8]
    made.save()
    again = sweep({RATE: rates(9)})
    assert (again.points, again.rungs) == (made.points, made.rungs)


def test_replicates_go_or_stay_together(sweep):
    made = sweep({RATE: rates(3), "seed": [1, 2]})
    losses = {0: (1.0, 3.0), 1: (1.5, 1.6), 2: (0.9, math.nan)}  # means 2, 1.55, none

    def loss(point, rung):
        value = losses[rates(3).index(point.values[RATE])][point.values["seed"] - 1]
        return None if math.isnan(value) else value

    simulated(made.points, made.judge, Halving.of(3, made.points), loss)
    ended = ["dropped"] * 2 + ["done"] * 2 + ["dropped"] * 2
    assert [point.status for point in made.points] == ended
    why = made.points[1].why
    assert why == "after step 10: mean eval_loss 2.0000, place 2 of 3; the best went on"


def test_what_stopped_or_diverged_by_itself_is_a_rival_too(sweep):
    made = sweep({RATE: rates(6)})
    made.points[0].status, made.points[0].eval_loss = "stopped early", 1.0
    made.points[1].status = "diverged"
    plan = Halving.of(3, made.points)
    simulated(made.points, made.judge, plan, lambda point, rung: 2 + point.values[RATE])
    states = [point.status for point in made.points]
    assert states == ["stopped early", "diverged", "done", *["dropped"] * 3]


@pytest.mark.parametrize("diverged, trained", [(6, [1, 2, 2]), (7, [1, 2]), (8, [2])])
def test_what_diverged_takes_one_place_and_not_one_at_each_rung(
    sweep, diverged, trained
):
    made = sweep({RATE: rates(9)})
    for point in made.points[:diverged]:
        point.status = "diverged"
    plan = Halving.of(3, made.points)
    simulated(made.points, made.judge, plan, lambda point, rung: point.values[RATE])
    left = made.points[diverged:]
    assert [point.status for point in left] == ["done", *["dropped"] * (len(left) - 1)]
    for place, point in enumerate(left[1:], 2):
        assert f"place {place} of 3; the best went on" in point.why


def test_what_stopped_among_the_best_keeps_its_place(sweep):
    made = sweep({RATE: rates(9)})
    for point in made.points[:2]:
        point.status, point.eval_loss = "stopped early", 1e-5
    plan = Halving.of(3, made.points)
    simulated(made.points, made.judge, plan, lambda point, rung: point.values[RATE])
    assert [len(point.scores) for point in made.points[2:]] == [2, *[1] * 6]
    assert made.points[2].why.endswith("place 3 of 3; the best went on")


def test_how_a_point_went_on_changes_nothing_that_was_decided(sweep):
    made = sweep({RATE: rates(3), "seed": [1, 2]})
    plan = Halving.of(3, made.points)
    for point in made.points:
        point.scores, point.steps = [point.values[RATE]], 10
    gone = halving.drop(made.points, 0, 0, made.judge, plan)
    assert len(gone) == 4
    made.points[0].status = "diverged"  # afterwards
    assert not halving.drop(made.points, 0, 0, made.judge, plan)
    assert made.points[1].status == "waiting"


def test_later_points_are_compared_with_all_that_came_before(sweep):
    made = sweep({RATE: rates(9)})
    plan = Halving.of(3, made.points)

    def loss(point, rung):
        return 100 * point.values[RATE]

    simulated(made.points, made.judge, plan, loss)
    before = [point.status for point in made.points]
    made.points += [
        Point("better", "points/09", {RATE: 1e-5}, turn=1),
        Point("worse", "points/10", {RATE: 6.5e-4}, turn=1),
    ]
    simulated(made.points, made.judge, plan, loss, turn=1)
    states = [point.status for point in made.points]
    assert states == [*before, "done", "dropped"]
    assert made.points[10].why.startswith("after step 10")
    assert "place 8 of 11" in made.points[10].why


def test_the_greater_figure_is_kept_where_it_is_the_better(sweep):
    metric = "training.metric_for_best_model=accuracy"
    overrides = (metric, "training.greater_is_better=true")
    overrides += ("objective.name=classification",)
    made = sweep({RATE: rates(3)}, *overrides)
    plan = Halving.of(3, made.points)
    for point, score in zip(made.points, (0.2, None, 0.9)):
        point.scores = [score]
    halving.drop(made.points, 0, 0, made.judge, plan)
    assert [point.status for point in made.points] == ["dropped", "dropped", "waiting"]


def test_places_do_not_change_what_is_decided(sweep):
    """The decision is that of sorting, whatever the order in which points train."""
    chance = random.Random(1)
    for _ in range(20):
        made = sweep({RATE: rates(9)})
        values = [chance.random() for _ in range(9)]
        for point, value in zip(made.points, values):
            point.scores = [value]
        order = list(made.points)
        chance.shuffle(order)
        halving.drop(order, 0, 0, made.judge, Halving(3, 2))
        kept = {n for n, point in enumerate(made.points) if not point.ended}
        assert kept == set(sorted(range(9), key=values.__getitem__)[:3])


def test_another_factor_is_another_sweep(sweep):
    made = sweep({RATE: rates(9)})
    halving.prepare(made, 3)
    (folder := made.directory / "points/00").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    made.save()
    for factor in (2, None):
        with pytest.raises(InputError, match=r"other settings \(--halving\)"):
            sweep({RATE: rates(9)}, factor=factor)
    # A grown one keeps its rungs.
    grown = sweep({RATE: rates(30)})
    assert halving.prepare(grown, 3).halving.rungs == 2


def test_all_numbers_of_points_leave_a_winner(sweep):
    for factor, count in itertools.product((2, 3, 5), (5, 8, 25)):
        points = [Point(str(n), f"points/{n}", {RATE: n}) for n in range(count)]
        plan = Halving.of(factor, points)
        judge = sweep({RATE: rates(5)}).judge
        simulated(points, judge, plan, lambda point, rung: point.values[RATE])
        done = [point.values[RATE] for point in points if point.status == "done"]
        assert done == list(range(len(done))) and 1 <= len(done) < 2 * factor

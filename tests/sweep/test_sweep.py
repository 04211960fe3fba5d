"""The points of a sweep: their names, groups, order, and what is said of them."""

import csv
import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from jaxpeft.assembly import configuration
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.sweep import grid, replicates, table, verdict
from jaxpeft.sweep import sweep as sweeping

CONFIG = {
    "output_dir": "runs/none",
    "model": {"path": "nowhere", "dtype": "float32"},
    "data": {"train": {"path": "train.json"}, "eval": {"path": "eval.json"}},
}
RATE = "optimizer.learning_rate"


@pytest.fixture
def config(tmp_path):
    """config(**changes): a configuration file; nothing that it names is opened."""

    def write(**changes):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, **changes}))
        return str(path)

    return write


def test_values_are_read_as_in_a_file():
    found = grid.axes(["a.b=1e-4,3e-4", "c=[q_proj, v_proj],all-linear", "d=true,null"])
    assert found == {
        "a.b": [1e-4, 3e-4],
        "c": [["q_proj", "v_proj"], "all-linear"],
        "d": [True, None],
    }
    assert [
        grid.name(values) for values in grid.points({"a.b": [1e-4], "d": [1, 2]})
    ] == [
        "b=0.0001 d=1",
        "b=0.0001 d=2",
    ]
    # Keys of two sections that end alike are told apart.
    assert grid.name({"adapter.r": 1, "other.r": 2}) == "adapter.r=1 other.r=2"


def test_overrides_give_back_the_very_values(config):
    values = {RATE: 1.2345678901234e-4, "seed": 7, "adapter.target_modules": ["q_proj"]}
    cfg = configuration.open_config(config(), grid.overrides(values))
    assert cfg.optimizer.learning_rate == values[RATE]
    assert (cfg.seed, cfg.adapter.target_modules) == (7, ["q_proj"])


STRINGS = ("a # b", "true", "1e-4", "[x]", "$(date) 'x'")


def test_text_on_a_grid_is_the_very_text_everywhere(config, tmp_path):
    """In the point's configuration, the tables and the line to train it again."""
    listed = ",".join(f'"{text}"' for text in STRINGS)
    axes = grid.axes(
        [f"adapter.exclude_modules={listed}", "adapter.init_from=a,'null'"]
    )
    assert axes["adapter.exclude_modules"] == list(STRINGS)
    file = tmp_path / "my config.yaml"
    file.write_text(Path(config()).read_text())
    folder = tmp_path / "sweep #2: {a}"
    made = sweeping.Sweep(str(file), ["adapter.bias= 'none'"], folder, axes)
    configs = made.configurations(made.add(grid.points(axes)))
    found = [(c.adapter.exclude_modules, c.adapter.init_from) for c in configs]
    assert found == [(text, start) for text in STRINGS for start in ("a", "null")]
    outputs = [cfg.output_dir for cfg in configs]
    assert outputs == [str(folder / point.directory) for point in made.points]
    for number, point in enumerate(made.points):
        point.status, point.eval_loss = "done", 9.0 - number
    line = verdict.advice(made)[1].removeprefix("train it again: ")
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "jaxpeft.train", "--config", str(file)]
    again = configuration.open_config(words[4], words[5:])
    section = again.adapter
    assert (section.exclude_modules, section.init_from) == (STRINGS[-1], "null")
    assert again.output_dir == f"{folder}-09"  # in no folder that is there
    made.save()
    with (folder / "sweep.csv").open() as file:
        row = next(csv.DictReader(file))
    key = "adapter.exclude_modules"
    assert strict_yaml.parse_scalar(row[key]) == STRINGS[-1]
    assert len({line.split()[1] for line in table.lines(made)}) == len(STRINGS) + 1


def test_an_empty_text_is_no_null(config, tmp_path):
    axes = grid.axes(["adapter.init_from='',null"])
    made = sweeping.Sweep(config(), (), tmp_path / "sweep", axes)
    with pytest.raises(InputError, match=r"init_from='': .*found ''; must not be"):
        made.configurations(made.add(grid.points(axes)))


def test_text_that_looks_like_a_number_is_another_value(config, tmp_path):
    axes = grid.axes(["a.b=true,'true',1,'1'"])
    made = sweeping.Sweep(config(), (), tmp_path / "sweep", axes)
    made.add(grid.points(axes))
    made.save()
    again = sweeping.Sweep(config(), (), made.directory, axes)
    assert not again.add(grid.points(axes))  # all four are known already
    with pytest.raises(InputError, match="names a value twice"):
        grid.axes(["a.b=1e-4,0.0001"])


AVERAGING = {
    "optimizer": {"name": "schedule_free_adamw"},
    "schedule": {"name": "constant"},
}


@pytest.mark.parametrize(
    "changes, points, groups",
    [
        ({}, [{RATE: 1e-4}, {RATE: 2e-4}, {"seed": 3}, {"adapter.lora_alpha": 2}], 1),
        ({}, [{"schedule.name": "linear"}, {"schedule.warmup_steps": 3}], 1),
        ({}, [{"adapter.r": 4}, {"adapter.r": 8}], 1),
        ({}, [{"adapter.use_rslora": True}, {"adapter.alpha_pattern": {"q": 2}}], 1),
        ({"optimizer": {"eps": 0.0}}, [{"adapter.r": 4}, {"adapter.r": 8}], 2),
        ({"optimizer": {"name": "muon"}}, [{"adapter.r": 4}, {"adapter.r": 8}], 2),
        ({"adapter": {"method": "vera"}}, [{"adapter.r": 4}, {"adapter.r": 8}], 2),
        ({}, [{"training.batch_size": 4}, {"training.batch_size": 8}], 2),
        (
            {"optimizer": {"name": "prodigy", "learning_rate": 1.0}},
            [{"seed": 1}] * 2,
            2,
        ),
        ({"optimizer": {"learning_rate": "auto"}}, [{"seed": 1}, {"seed": 2}], 2),
        ({"schedule": {"name": "greedy"}}, [{RATE: 1e-4}, {RATE: 2e-4}], 2),
        ({"schedule": {"name": "greedy"}}, [{"seed": 1}, {"seed": 2}], 1),
        (AVERAGING, [{RATE: 1e-4}, {RATE: 2e-4}], 1),
        (AVERAGING, [{"schedule.warmup_steps": 1}, {"schedule.warmup_steps": 2}], 2),
        ({"optimizer": {"offload": True}}, [{"seed": 1}, {"seed": 2}], 2),
        ({"adapter": {"method": "full"}}, [{"seed": 1}, {"seed": 2}], 2),
        (
            {"adapter": {"method": "full"}, "optimizer": {"name": "adalomo"}},
            [{"seed": 1}, {"seed": 2}],
            2,
        ),
    ],
)
def test_points_share_a_program_where_only_numbers_differ(
    config, changes, points, groups
):
    path = config(**changes)
    configs = [configuration.open_config(path, grid.overrides(p)) for p in points]
    found = grid.together(configs, 1, None)
    assert len(found) == groups
    assert sorted(n for numbers in found for n in numbers) == list(range(len(points)))
    # On several devices every point trains alone.
    assert len(grid.together(configs, 8, None)) == len(points)


def test_why_ranks_train_apart_is_said(config):
    def said(name, devices=1):
        path = config(optimizer={"name": name})
        configs = [configuration.open_config(path, [f"adapter.r={r}"]) for r in (4, 8)]
        return grid.of_ranks(configs, devices)

    assert said("muon").startswith("points of different adapter.r train one after")
    assert "muon looks at more than the element" in said("muon")
    # AdamW's do not, and on several devices, or with Prodigy, the reason is another.
    assert [said("adamw"), said("muon", 8), said("prodigy")] == [None] * 3


def test_at_once_bounds_the_groups(config):
    path = config(adapter={"method": "full"})
    configs = [configuration.open_config(path, [f"seed={n}"]) for n in range(5)]
    assert grid.together(configs, 1, 2) == [[0, 1], [2, 3], [4]]


@pytest.fixture
def sweep(config, tmp_path):
    """A sweep of three rates and two seeds that has ended, whose best rate is last."""
    axes = {RATE: [1e-4, 1e-3, 1e-2], "seed": [1, 2]}
    made = sweeping.Sweep(config(), (), tmp_path / "sweep", axes)
    for point in made.add(grid.points(axes)):
        point.status, point.train_loss = "done", 1.0
        point.eval_loss = 2.0 - 10 * point.values[RATE] + 0.01 * point.values["seed"]
    made.points[0].status = "diverged"
    made.points[1].eval_loss = None
    return made


def test_the_best_come_first_and_the_diverged_last(sweep):
    names = [point.name for point in sweep.ranking()]
    assert names[0] == "learning_rate=0.01 seed=1"
    assert names[-2:] == ["learning_rate=0.0001 seed=2", "learning_rate=0.0001 seed=1"]
    found = table.lines(sweep)
    assert len(found) == 7 and "diverged" in found[-1]
    assert len({len(line) for line in found}) == 1  # aligned


def test_seeds_are_taken_together(sweep):
    best, other, worst = verdict.over_seeds(sweep)
    assert worst == "learning_rate=0.0001: 2 of 2 seeds diverged"
    assert best == (
        "learning_rate=0.01: 1.9150 on average over 2 seeds, standard error 0.0050, "
        "from 1.9100 to 1.9200"
    )
    assert other.startswith("learning_rate=0.001: 2.0050")


def test_a_best_value_at_the_end_of_its_grid_is_told(sweep):
    advice = verdict.advice(sweep)
    assert advice[0] == (
        "best: learning_rate=0.01, eval_loss 1.9150 nats per token on average over 2 "
        "seeds, standard error 0.0050"
    )
    assert " optimizer.learning_rate=0.01 seed=1 output_dir=" in advice[1]
    assert advice[2].startswith(
        "the next is learning_rate=0.001, 0.0900 behind: more than seeds make"
    )
    assert advice[3].startswith(
        f"{RATE}: the best value, 0.01, is at the end of what was tried; try larger"
    )
    assert len(advice) == 4  # seeds are no scale


def scored(config, folder, axes, scores):
    """A sweep that has ended with these losses."""
    made = sweeping.Sweep(config(), (), folder, axes)
    for point, score in zip(made.add(grid.points(axes)), scores, strict=True):
        point.status, point.eval_loss = "done", score
    return made


def test_a_difference_that_seeds_make_is_no_difference(config, tmp_path):
    axes = {RATE: [1e-3, 3e-3, 1e-2], "seed": [1, 2, 3]}
    losses = [1.0, 1.2, 1.1, 0.9, 1.1, 1.0, 2.0, 2.1, 2.2]
    told = verdict.advice(scored(config, tmp_path / "sweep", axes, losses))
    # Welch's test by scipy: 0.0816 as standard error, 4 degrees of freedom.
    by_seeds = stats.t.ppf(0.975, 4) * math.sqrt(2) * 0.1 / math.sqrt(3)
    number = float(re.search(r"up to ([0-9.]+) is to be", told[2])[1])
    assert number == pytest.approx(by_seeds, rel=2e-3)
    assert told[2].startswith("the next is learning_rate=0.001, 0.1000 behind: no more")
    assert "give more seeds before anything finer" in told[2]
    assert len(told) == 3  # nothing finer is advised


def test_the_margin_is_that_of_welchs_test():
    random = np.random.default_rng(0)
    for _ in range(20):
        one, other = (random.normal(size=n) * s for n, s in ((3, 1.0), (5, 0.3)))
        ours = replicates.margin(
            *(replicates.Candidate("", (), tuple(x)) for x in (one, other))
        )
        test = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
        theirs = (test.high - test.low) / 2
        # Degrees of freedom are rounded down: never less than theirs.
        assert theirs * (1 - 1e-3) <= ours <= theirs * 3.1


def test_a_seed_of_every_candidate_that_diverged_is_told(config, tmp_path):
    axes = {RATE: [1e-3, 3e-3], "seed": [1, 2, 3]}
    losses = [1.0, 1.2, 0.1, 0.9, 0.2, None]
    made = scored(config, tmp_path / "sweep", axes, losses)
    for number in (2, 4, 5):  # the evaluation before it was finite
        made.points[number].status = "diverged"
    assert verdict.over_seeds(made) == [
        "learning_rate=0.003: 2 of 3 seeds diverged, the other had 0.9000",
        "learning_rate=0.001: 1 of 3 seeds diverged, the others from 1.0000 to 1.2000",
    ]
    assert verdict.advice(made) == [
        f"of every candidate a seed diverged: lower {RATE}",
        "the best point: learning_rate=0.003 seed=1, eval_loss 0.9000 nats per token",
    ]
    for point in made.points:
        point.status = "diverged"
    assert verdict.advice(made) == [f"no point has a finite loss: lower {RATE}"]
    assert verdict.over_seeds(made)[0].endswith("3 of 3 seeds diverged")


def test_a_finer_grid_of_whole_numbers_can_be_read(config, tmp_path):
    axes = {"adapter.r": [128, 256, 512]}
    made = scored(config, tmp_path / "sweep", axes, [2.0, 1.0, 2.0])
    assert "--grid adapter.r=192,384, " in verdict.advice(made)[-1]


def test_what_to_try_next_is_said(config, tmp_path):
    axes = {RATE: [1e-4, 1e-3, 1e-2], "adapter.r": [2, 4, 6]}
    losses = [2.0, 2.0, 2.0, 1.9, 1.0, 1.8, 2.0, 2.0, 2.0]
    told = verdict.advice(scored(config, tmp_path / "sweep", axes, losses))
    assert told[2] == (
        "the next is learning_rate=0.001 r=6, 0.8000 behind: whether that is more than "
        "another seed makes is not known; train both with several, --grid seed=1,2,3, "
        "in another --out"
    )
    assert told[3].startswith(
        f"{RATE}: the best value, 0.001, lies inside of what was tried; a finer grid: "
        f"--grid {RATE}=0.00032,0.0032, "
    )
    assert "adapter.r=3,5, " in told[4]
    # Both are what a grid can read, and values that were not tried.
    assert grid.axes([f"{RATE}=0.00032,0.0032"])[RATE] == [0.00032, 0.0032]


def test_a_directory_keeps_its_sweep(sweep, config, tmp_path):
    sweep.save()
    again = sweeping.Sweep(config(), (), sweep.directory, sweep.axes)
    assert again.points == sweep.points
    stored = json.loads((sweep.directory / "sweep.json").read_text())
    entries = [dataclasses.asdict(point) for point in sweep.points]
    for entry in entries:  # the loss is what they are compared by, and none is dropped
        assert [entry.pop(key) for key in ("scores", "steps", "why")] == [
            [],
            None,
            None,
        ]
        assert (entry.pop("figure"), entry.pop("best_figure")) == (None, None)
    assert stored["points"] == entries
    # Nothing was trained yet: it may become another.
    other = sweeping.Sweep(config(), ["data.max_length=9"], sweep.directory, sweep.axes)
    assert other.points == []
    for point in sweep.points:
        folder = sweep.directory / point.directory
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"other settings \(data.max_length\)"):
        sweeping.Sweep(config(), ["data.max_length=9"], sweep.directory, sweep.axes)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(InputError, match="is not empty and holds no sweep"):
        sweeping.Sweep(config(), (), other, sweep.axes)
    with pytest.raises(InputError, match=r"other settings \(.*adapter.r"):
        sweeping.Sweep(config(), (), sweep.directory, {"adapter.r": [1, 2]})
    for damage in ("[]", "{", '{"points": []}'):
        (sweep.directory / "sweep.json").write_text(damage)
        with pytest.raises(InputError, match="no sweep that can be gone on with"):
            sweeping.Sweep(config(), (), sweep.directory, sweep.axes)


def test_a_grid_can_get_further_values(sweep, config):
    sweep.save()
    axes = {RATE: [1e-2, 3e-2], "seed": [1, 2]}
    grown = sweeping.Sweep(config(), (), sweep.directory, axes)
    assert grown.axes[RATE] == [1e-4, 1e-3, 1e-2, 3e-2]
    added = grown.add(grid.points(axes))
    assert [point.values[RATE] for point in added] == [3e-2, 3e-2]
    assert [point.directory for point in added] == ["points/06", "points/07"]
    assert grown.points[:6] == sweep.points
    assert {point.turn for point in added} == {1}
    assert not grown.add(grid.points(axes))


def test_what_a_search_found_at_the_end_of_its_space_is_told(config, tmp_path):
    space = {"kind": "log", "low": 1e-4, "high": 1e-2}
    made = sweeping.Sweep(config(), (), tmp_path / "sweep", {RATE: space})
    rates = [2e-4, 9e-3, 1.23456789e-3]
    for point, loss in zip(made.add([{RATE: rate} for rate in rates]), (3, 1, 2)):
        point.status, point.eval_loss = "done", float(loss)
    assert [point.name for point in made.points][2] == "learning_rate=0.001235"
    told = verdict.advice(made)[-1]
    assert "0.009, is at the end of what was tried; try larger ones" in told
    made.points[1].eval_loss = 9.0
    assert len(verdict.advice(made)) == 2


def test_losses_of_unlike_objectives_are_said_to_be_unlike(config, tmp_path):
    axes = grid.axes(["objective.beta=0.1,0.3"])
    shared = "training.metric_for_best_model=rewards/accuracies"
    for more, is_told in (([], True), ([shared], False)):
        own = ["objective.name=dpo", *more]
        made = sweeping.Sweep(config(), own, tmp_path / "sweep", axes)
        made.add(grid.points(axes))
        for point in made.points:
            point.status, point.eval_loss, point.figure = "done", 0.5, 0.5
        told = [line for line in verdict.advice(made) if "another loss" in line]
        assert bool(told) == is_told
        assert "nats per token" not in verdict.advice(made)[0]


@pytest.mark.parametrize(
    ("key", "objective", "way"),
    [
        ("label_smoothing", "sft", None),  # evaluations leave it out
        ("beta", "kto", "compare the answers that they give"),
        ("beta", "orpo", "metric_for_best_model=rewards/accuracies"),
    ],
)
def test_what_unlike_losses_are_replaced_by(key, objective, way, config, tmp_path):
    axes = grid.axes([f"objective.{key}=0.1,0.3"])
    own = [f"objective.name={objective}"]
    made = sweeping.Sweep(config(), own, tmp_path / "sweep", axes)
    made.add(grid.points(axes))
    for point in made.points:
        point.status, point.eval_loss = "done", 0.5
    told = [line for line in verdict.advice(made) if "another loss" in line]
    assert not told if way is None else told[0].endswith(way)

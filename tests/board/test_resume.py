"""Sweeps that were started by hand go on by what their folder says of them."""

import json

import pytest

from jaxpeft import config
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.board import resume
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.sweep import _parser, grid
from jaxpeft.sweep.sweep import Sweep

from .conftest import CONFIG, HOST, TOKEN

OWN = {"x-board-token": TOKEN, "origin": f"http://{HOST}"}
GRIDS = [
    {"optimizer.learning_rate": [1e-4, 3e-4, 1.0], "seed": [1, 2]},
    {"data.train": [["a, b.json"], ["'c'.json"]], "adapter.bias": ["none", "all"]},
    {"training.max_steps": [10, None], "adapter.use_rslora": [True, False]},
]


def settings(**more):
    """The settings that a sweep of the tests' configuration writes down."""
    mapping = {**strict_yaml.load(CONFIG, "x"), **more}
    found = config.parse(mapping, "x", TABLES).model_dump(mode="json")
    found.pop("output_dir")
    return found


@pytest.fixture
def make_sweep(tmp_path, board):
    """make_sweep(axes, ...): what the board knows of a sweep that was stopped."""

    def make(grid, **more):
        folder = tmp_path / "runs" / "sweep"
        (folder / "points" / "00").mkdir(parents=True)
        values = {key: axis[0] for key, axis in grid.items() if isinstance(axis, list)}
        row = {"name": "a", "directory": "points/00", "values": values}
        content = {"settings": settings(), "axes": grid, "points": [row], **more}
        folder.joinpath("sweep.json").write_text(json.dumps(content))
        command = {"command": "jaxpeft sweep --config <mine>.yaml"}
        (folder / "points" / "00" / "environment.json").write_text(json.dumps(command))
        (folder / "points" / "00" / "metrics.jsonl").write_text('{"step": 1}\n')
        (folder / ".ended").write_text('{"status": "preempted", "why": "x"}')
        return board.entry("sweep")

    return make


@pytest.mark.parametrize("axes", GRIDS)
@pytest.mark.parametrize("more", [{}, {"at_once": 2, "halving": {"factor": 3}}])
def test_the_command_of_the_board_takes_a_sweep_over(make_sweep, board, axes, more):
    """As the sweep itself judges it, which refuses what is another sweep."""
    entry = make_sweep(axes, **more)
    for _ in range(2):
        answer = board.ask("POST", f"/run/{board.key('sweep')}/do/continue", OWN)
        assert answer.headers["location"] == "/jobs/1"
    (job,) = board.queue.jobs()
    args = _parser().parse_intermixed_args(list(job.argv[1:]))
    assert (args.at_once, args.halving) == ((2, 3) if more else (None, None))
    assert args.out == str(entry.place.folder) and job.run == args.out
    made = Sweep(
        *(args.config, args.overrides, entry.place.folder, grid.axes(args.grid)),
        *(args.at_once, args.halving),
    )
    assert [point.directory for point in made.points] == ["points/00"]


def test_a_search_goes_on_to_as_many_trials(make_sweep):
    axes = {
        "optimizer.learning_rate": {"kind": "log", "low": 1e-05, "high": 0.01},
        "adapter.r": {"kind": "int", "low": 4, "high": 64},
        "seed": {"kind": "choice", "values": [1, 2]},
    }
    _, options = resume.of_sweep(make_sweep(axes, trials=30))
    assert options[:4] == ["--search", "optuna", "--trials", "30"]
    args = _parser().parse_intermixed_args(["--config", "x", *options])
    assert args.space == [
        *("optimizer.learning_rate=log:1e-05:0.01", "adapter.r=int:4:64", "seed=1,2")
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"settings": None}, "no settings"),
        ({"settings": {"nonsense": 1}}, "nonsense"),
        ({"settings": settings() | {"seed": "1"}}, "seed"),
        ({"axes": {}}, "no axes"),
        ({"axes": {"seed": 3}}, "neither values nor a space"),
        ({"axes": {"output_dir": ["/etc"]}}, "output_dir"),
        ({"axes": {"seed --out /etc": [1]}}, None),
        ({"halving": {"factor": "3 --out /etc"}}, "halving"),
    ],
)
def test_where_the_folder_does_not_say_enough_its_command_is_shown(
    make_sweep, board, wrong, why
):
    entry = make_sweep({"seed": [1, 2]}, **wrong)
    if why is None:  # an argument of its own, which nothing can be put into
        assert resume.of_sweep(entry)[1][0] == "--grid=seed --out /etc=1"
        return
    with pytest.raises(InputError, match=why) as error:
        resume.of_sweep(entry)
    assert "jaxpeft sweep --config <mine>.yaml" in str(error.value)
    answer = board.ask("POST", f"/run/{board.key('sweep')}/do/continue", OWN)
    assert answer.code == 409 and "&lt;mine&gt;.yaml" in answer.text
    assert "&lt;mine&gt;.yaml" in board.get(f"/run/{board.key('sweep')}").text


def test_a_command_that_stands_in_a_folder_is_never_started(make_sweep, board):
    entry = make_sweep({"seed": [1, 2]}, command=["sweep", "--out", "/etc"])
    assert "/etc" not in " ".join(resume.of_sweep(entry)[1])

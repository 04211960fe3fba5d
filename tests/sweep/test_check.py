"""What is found wrong with the points of a sweep before any of them trains."""

import json

import pytest
import yaml

from jaxpeft.devices import host_memory
from jaxpeft.errors import InputError
from jaxpeft.sweep import check, grid
from jaxpeft.sweep import sweep as sweeping

TARGETS = "adapter.target_modules"
WRONG = "[q_proj,v_proj]"  # quoted on the command line: one text, and no list


@pytest.fixture
def sweep(tmp_path):
    """sweep(axes, **changes): a sweep over a model that ships, with its points."""

    def make(axes, **changes):
        path = tmp_path / "config.yaml"
        settings = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": "jaxpeft:tiny-llama", "dtype": "float32"},
            "data": {"train": {"path": "jaxpeft:weather/train.json"}},
            "adapter": {"target_modules": ["q_proj"]},
        }
        path.write_text(yaml.safe_dump({**settings, **changes}))
        made = sweeping.Sweep(str(path), (), tmp_path / "sweep", axes)
        made.add(grid.points(axes))
        return made

    return make


def problems(made):
    with pytest.raises(InputError) as error:
        check.check(made)
    return error.value.problems


def test_all_bad_points_are_told_at_once_and_nothing_is_written(sweep, monkeypatch):
    opened = []
    open_base = check.open_base
    monkeypatch.setattr(check, "open_base", lambda x: opened.append(x) or open_base(x))
    made = sweep({TARGETS: [["q_proj"], WRONG, "nothing"], "seed": [1, "x"]})
    told = problems(made)
    assert len(told) == 5  # three whose seed is none, and two whose targets are not
    assert sum(": seed: " in text for text in told) == 3
    (first, second) = (text for text in told if "matches no linear module" in text)
    assert first.startswith(f"target_modules='{WRONG}' seed=1: {TARGETS}: '{WRONG}'")
    assert second.startswith("target_modules=nothing seed=1: ")
    assert len(opened) == 1
    assert not made.directory.exists()


def test_sound_points_pass(sweep):
    check.check(sweep({TARGETS: [["q_proj"], ["q_proj", "v_proj"]]}))
    check.check(sweep({"adapter.method": ["lora", "full"]}))
    none = sweep({"seed": [1]})
    none.points[0].status = "done"
    check.check(none)


def test_paths_and_lengths_are_checked_by_point(sweep, tmp_path):
    missing = str(tmp_path / "absent")
    told = problems(sweep({"model.path": ["jaxpeft:tiny-llama", missing]}))
    assert len(told) == 1 and told[0].startswith("path=") and missing in told[0]
    sources = [{"path": "jaxpeft:weather/train.json"}, {"path": f"{missing}.json"}]
    (told,) = problems(sweep({"data.train": sources}))
    assert "there is no such data file" in told and f"{missing}.json" in told
    (told,) = problems(sweep({"data.max_length": [64, 10**6]}))
    assert told.startswith("max_length=1000000: data.max_length: found 1000000")
    (told,) = problems(sweep({"adapter.init_from": [None, missing]}))
    assert told.startswith("init_from=") and missing in told


def test_memory_that_the_devices_lack_is_told_before_any_trains(sweep, monkeypatch):
    monkeypatch.setattr(host_memory, "is_lacking", lambda device: True)
    (told,) = problems(sweep({"optimizer.offload": [False, True]}))
    assert told.startswith("offload=true: optimizer.offload: found true; ")
    (told,) = problems(sweep({"model.offload": ["activations"], "seed": [1, 2]}))
    assert told.startswith("model.offload: found 'activations'; ")


def test_what_is_wrong_with_every_point_is_said_once(sweep, tmp_path):
    absent = str(tmp_path / "absent.json")
    made = sweep({"seed": [1, 2, 3]}, data={"train": {"path": absent}})
    (told,) = problems(made)
    assert told.startswith(f"{absent}: there is no such data file")


def test_a_point_that_an_earlier_command_left_can_be_dropped(sweep):
    first = sweep({TARGETS: [["q_proj"], WRONG]})
    first.points[0].status, first.points[1].status = "done", "running"
    (folder := first.directory / "points/00").mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    first.save()
    axes = {TARGETS: [["q_proj"], ["q_proj", "v_proj"]]}
    again = sweep(axes)
    wrong, way = problems(again)
    assert "matches no linear module" in wrong
    path = first.directory / "sweep.json"
    assert '"directory": "points/01"' in way and str(path) in way
    assert "delete the folder" not in way  # there is none
    (first.directory / "points/01").mkdir()
    assert f"delete the folder {first.directory / 'points/01'}" in problems(again)[1]
    # The present grid's own points are mended on the command line.
    assert not any(map(again.way_out, (again.points[0], again.points[2])))
    # Also where it alone is left, or others of its kind.
    again.points[2].status = "done"
    assert len(problems(again)) == 2
    again.points[0].status = "running"
    again.points[0].values = {TARGETS: WRONG, "seed": 2}
    assert len(problems(again)) == 3  # what is wrong with both, and a way for each
    # What it says is done.
    (first.directory / "points/01").rmdir()
    stored = json.loads(path.read_text())
    stored["points"] = [p for p in stored["points"] if p["directory"] != "points/01"]
    path.write_text(json.dumps(stored))
    mended = sweep(axes)
    check.check(mended)
    assert [point.values[TARGETS] for point in mended.points] == axes[TARGETS]


def test_no_two_points_share_a_folder_after_one_was_dropped(sweep):
    made = sweep({"seed": [1, 2, 3]})
    made.points.pop(1)
    made.add([{"seed": 4}])
    folders = [point.directory for point in made.points]
    assert folders == ["points/00", "points/02", "points/03"]


def test_what_training_finds_wrong_names_the_way_out(sweep, monkeypatch):
    made = sweep({"seed": [1]})
    made._present.clear()  # as where an earlier command added the point

    def refuse(cfg, until):
        raise InputError("row 3: is wrong")

    monkeypatch.setattr(sweeping.course, "train", refuse)
    with pytest.raises(InputError) as error:
        made.train(made.points)
    wrong, way = error.value.problems
    assert wrong == "row 3: is wrong" and way.startswith(
        "seed=1: comes from an earlier"
    )

"""Damaged and half-written checkpoints: at most one step is lost, never silently."""

import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.rundir import manifest
from jaxpeft.rundir.checkpoint import Checkpoints


def make_state(step):
    return {
        "x": jax.random.normal(jax.random.key(step), (64, 16)),
        "key": jax.random.key(step),
        "hole": None,
    }


def assert_same(restored, expected):
    assert restored.keys() == expected.keys() and restored["hole"] is None
    assert restored["key"] == expected["key"]
    assert np.asarray(restored["x"]).tobytes() == np.asarray(expected["x"]).tobytes()


def open_at(directory):
    return Checkpoints(directory, save_total_limit=None, fingerprint={})


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write_steps(directory, *steps):
    with open_at(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"position": step * 16})


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    write_steps(directory, 10, 20)
    return directory


@pytest.fixture
def run(two_steps, tmp_path):
    """A copy of checkpoints 10 and 20 to do harm to."""
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def assert_restores(directory, step):
    with open_at(directory) as checkpoints:
        state, extra = checkpoints.restore(make_state(0))
    assert_same(state, make_state(step))
    assert extra == {"position": step * 16}


def stored_files(step_directory):
    return sorted(path for path in step_directory.rglob("*") if path.is_file())


def flip(path, position):
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 0x10
    path.write_bytes(damaged)


def test_any_flipped_bit_falls_back_to_the_step_before(run, capsys):
    paths = stored_files(run / "20")
    assert len(paths) > 5
    with open_at(run) as checkpoints:
        for path in paths:
            original = path.read_bytes()
            for position in {0, len(original) // 2, len(original) - 1}:
                if 0 <= position < len(original):
                    flip(path, position)
                    assert checkpoints.latest() == 10, (path.name, position)
                    path.write_bytes(original)
        assert f"checkpoint {run / '20'} is damaged" in capsys.readouterr().err
        assert checkpoints.latest() == 20
    assert capsys.readouterr().err == ""


def truncate_arrays(step):
    path = max(stored_files(step), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


def empty_the_directory(step):
    shutil.rmtree(step)
    step.mkdir()


def put_a_file_in_its_place(step):
    shutil.rmtree(step)
    step.touch()


HARM = {
    "flip": lambda step: flip(step / "state" / "_METADATA", 5),
    "truncate": truncate_arrays,
    "delete": lambda step: (step / "record" / "metadata").unlink(),
    "add": lambda step: (step / "state" / "more").touch(),
    "unseal": lambda step: (step / manifest.MANIFEST).unlink(),
    "empty": empty_the_directory,
    "file": put_a_file_in_its_place,
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_damage_costs_one_step_and_training_goes_on(run, harm, capsys):
    harm(run / "20")
    with open_at(run) as checkpoints:
        state, extra = checkpoints.restore(make_state(0))
        assert_same(state, make_state(10))
        assert extra == {"position": 160}
        assert "20" in names(run)
        checkpoints.save(20, make_state(20), {"position": 320})
    errors = capsys.readouterr().err
    assert f"{run / '20'} is damaged" in errors
    assert f"{run / '20'} is deleted" in errors
    assert names(run) == ["10", "20"]
    assert_restores(run, 20)


def test_several_damaged_steps_are_all_named_and_deleted(run, capsys):
    write_steps(run, 30, 40)
    for name in ("20", "30", "40"):
        truncate_arrays(run / name)
    with open_at(run) as checkpoints:
        assert checkpoints.latest() == 10
        checkpoints.save(15, make_state(15), {"position": 240})
    errors = capsys.readouterr().err
    assert all(f"{run / name} is deleted" in errors for name in ("20", "30", "40"))
    assert names(run) == ["10", "15"]
    assert_restores(run, 15)


def test_without_an_intact_step_the_run_stops_and_stays(run):
    for name in ("10", "20"):
        (run / name / manifest.MANIFEST).unlink()
    before = sorted(run.rglob("*"))
    with open_at(run) as checkpoints, pytest.raises(InputError) as failure:
        checkpoints.restore(make_state(0))
    message = str(failure.value)
    assert str(run) in message and "another output_dir" in message
    assert str(run / "10") in message and str(run / "20") in message
    assert sorted(run.rglob("*")) == before


def test_leftovers_of_killed_processes_neither_count_nor_stay(run):
    shutil.copytree(run / "20", run / "30.unsealed")
    (run / "30.unsealed" / manifest.MANIFEST).unlink()
    shutil.copytree(run / "20", run / "40.unsealed")
    (run / "40.unsealed.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (run / "5.deleting").mkdir()
    with open_at(run) as checkpoints:
        assert checkpoints.latest() == 20
        assert "30.unsealed" in names(run)
        checkpoints.save(30, make_state(30), {"position": 480})
    assert names(run) == ["10", "20", "30"]
    assert_restores(run, 30)


def test_a_run_killed_in_its_first_save_starts_anew(tmp_path):
    (tmp_path / "10.unsealed").mkdir()
    with open_at(tmp_path) as checkpoints:
        assert checkpoints.latest() is None


TRAIN = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxpeft.rundir.checkpoint import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), save_total_limit=2, fingerprint={})
state = {"step": jnp.int32(0), "x": jnp.zeros((64, 1024)), "hole": None}
found = checkpoints.restore(state)
if found:
    state, extra = found
    assert extra["step"] == state["step"]
advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
while True:
    state = advance(state)
    checkpoints.save(int(state["step"]), state, {"step": int(state["step"])})
    sys.stdout.write(f"{int(state['step'])}\\n")
    sys.stdout.flush()
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_while_saving_a_run_always_goes_on(tmp_path, seed):
    draw = random.Random(seed)
    abstract = {"step": jnp.int32(0), "x": jnp.zeros((64, 1024)), "hole": None}
    reached = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(tmp_path)], stdout=subprocess.PIPE
        )
        first = int(child.stdout.readline())
        assert first == reached + 1
        time.sleep(draw.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        started = [first, *map(int, child.communicate()[0].split())][-1]
        with open_at(tmp_path) as checkpoints:
            latest = checkpoints.latest() or 0
            # A save returns when the one before is sealed, which is not lost again.
            assert started - 1 <= latest <= started + 1
            if latest:
                state, extra = checkpoints.restore(abstract)
                assert int(state["step"]) == extra["step"] == latest
                np.testing.assert_array_equal(state["x"], np.full((64, 1024), latest))
        reached = latest

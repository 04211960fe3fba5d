"""The states of paused points: what is said where one is lost or of another step."""

import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxpeft.assembly.step import TrainState
from jaxpeft.errors import InputError
from jaxpeft.sweep import joint_step, stretches

PRINTS = [{"data": "0"}, {"data": "1"}]


@pytest.fixture
def program() -> Any:
    """The program of two points, of two parameters each."""
    tx, key = optax.sgd(0.1), jax.random.key(0)
    trainable = {"w": jnp.arange(2.0)}
    run = SimpleNamespace(
        tx=tx, key=key, trainable=trainable, base=SimpleNamespace(scales_loss=False)
    )
    state = TrainState.create(trainable, tx, key)
    saved = joint_step.stacked([{"state": state, "best": None}] * 2)

    def part(number):
        return jax.tree.map(joint_step.at(number), made.saved)

    made = SimpleNamespace(runs=[run, run], saved=saved, part=part)
    return made


@pytest.fixture
def kept(program, tmp_path):
    """kept(*steps): the folders of points that have paused after these steps."""

    def make(*steps):
        folders = [tmp_path / str(number) for number in range(2)]
        stretch = stretches.Stretch(4, folders)
        standing: Any = SimpleNamespace(position=lambda: {"tokens": 7})
        state = program.saved["state"]
        program.saved["state"] = state.replace(step=jnp.asarray(steps))
        for number, own in enumerate(PRINTS):
            stretches.keep(program, stretch, number, standing, own, 1.5)
        return folders

    return make


def test_paused_states_go_on_together_in_silence(program, kept, capsys):
    stretch = stretches.Stretch(None, kept(4, 4), since=4)
    found = stretches.gathered(program, stretch, PRINTS)
    assert found is not None
    saved, note = found
    assert saved["state"].step.tolist() == [4, 4]
    assert note == {"seconds": 1.5, "0": {"tokens": 7}, "1": {"tokens": 7}}
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("lost", "since", "told"), [([1], None, [1]), ([0, 1], 4, [0, 1]), ([0], 4, [0])]
)
def test_a_lost_state_is_told(program, kept, capsys, lost, since, told):
    folders = kept(4, 4)
    for number in lost:
        shutil.rmtree(folders[number])
    stretch = stretches.Stretch(None, folders, since)
    assert stretches.gathered(program, stretch, PRINTS) is None
    (line,) = capsys.readouterr().err.splitlines()
    named = ", ".join(str(folders[number]) for number in told)
    assert f"{named}: the paused state is missing; its program begins again" in line


def test_a_first_stretch_begins_in_silence(program, tmp_path, capsys):
    stretch = stretches.Stretch(4, [tmp_path / "0", tmp_path / "1"])
    assert stretches.gathered(program, stretch, PRINTS) is None
    assert not capsys.readouterr().err


def test_states_of_unlike_steps_are_refused(program, kept):
    stretch = stretches.Stretch(None, kept(4, 2), since=2)
    with pytest.raises(InputError, match="--at-once: .* unlike steps, 2 and 4; repeat"):
        stretches.gathered(program, stretch, PRINTS)

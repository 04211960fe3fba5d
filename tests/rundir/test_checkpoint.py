"""Checkpoints come back bit for bit, only into the run they belong to, and in order."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import struct

from jaxpeft.errors import InputError
from jaxpeft.rundir import manifest
from jaxpeft.rundir.checkpoint import CheckpointError, Checkpoints

FINGERPRINT = {"config": "c0", "data": "d0", "base": "b0"}


@struct.dataclass
class Codes:
    """A leaf with static data and an odd mix of dtypes, as 8-bit moments have."""

    codes: jax.Array
    scales: jax.Array
    nothing: jax.Array
    block_size: int = struct.field(pytree_node=False, default=256)


class Moments(NamedTuple):
    count: jax.Array
    mu: dict


@struct.dataclass
class TrainState:
    step: jax.Array
    params: dict
    opt_state: tuple
    key: jax.Array
    skipped: jax.Array


def make_state(step):
    """A state whose every leaf depends on the step."""
    draw = jax.random.normal(jax.random.key(step), (2, 8, 4))
    params = {
        "model": {
            "embed_tokens": {"embedding": None},
            "layers": {"q_proj": {"kernel": {"base": None, "a": draw, "b": draw + 1}}},
            "norm": {"scale": draw[0, 0].astype(jnp.bfloat16)},
        },
        "dotted.name": {"x": draw[0]},
        "dotted": {"name.x": draw[1]},
    }
    mask = jax.tree.map(lambda leaf: leaf.ndim == 3, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-3, 10), mask=mask),
    )
    _, moments = tx.update(params, tx.init(params), params)
    codes = Codes(
        codes=jnp.arange(step, step + 16, dtype=jnp.uint8),
        scales=jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42, step], jnp.float32),
        nothing=jnp.zeros((0, 3), jnp.int8),
    )
    return TrainState(
        step=jnp.int32(step),
        params=params,
        opt_state=(moments, Moments(jnp.uint32(step), {"x": codes, "y": None})),
        key=jax.random.fold_in(jax.random.key(7), step),
        skipped=jnp.int32(0),
    )


def make_abstract(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding
        ),
        state,
    )


def content(leaf):
    """A leaf's dtype, shape and bytes."""
    kind = (str(leaf.dtype), leaf.shape)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return *kind, np.asarray(leaf).tobytes()


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    leaves = zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True)
    for leaf, other in leaves:
        assert content(leaf) == content(other)
        assert leaf.sharding == other.sharding


def open_at(directory, *, save_total_limit=None, fingerprint=FINGERPRINT):
    return Checkpoints(
        directory, save_total_limit=save_total_limit, fingerprint=fingerprint
    )


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def write_steps(directory, *steps, **options):
    with open_at(directory, **options) as checkpoints:
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


def assert_restores(directory, step, **options):
    with open_at(directory, **options) as checkpoints:
        state, extra = checkpoints.restore(make_abstract(make_state(0)))
    assert_same(state, make_state(step))
    assert extra == {"position": step * 16}


# Round trip ---------------------------------------------------------------------------


@pytest.mark.slow
def test_every_kind_of_leaf_round_trips(two_steps):
    assert names(two_steps) == ["10", "20"]
    assert_restores(two_steps, 20)


def test_a_concrete_state_serves_as_the_abstract_one(two_steps):
    with open_at(two_steps) as checkpoints:
        state, _ = checkpoints.restore(make_state(3))
    assert_same(state, make_state(20))


def test_shardings_default_to_one_device(two_steps):
    bare = jax.eval_shape(lambda: make_state(0))
    with open_at(two_steps) as checkpoints:
        state, _ = checkpoints.restore(bare)
    assert_same(state, make_state(20))


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_orbax_alone_reads_what_is_stored(two_steps):
    arrays = ocp.PyTreeCheckpointer().restore(two_steps / "20" / "state")
    state = make_state(20)
    kernel = state.params["model"]["layers"]["q_proj"]["kernel"]
    name = "params/model/layers/q_proj/kernel/a"
    np.testing.assert_array_equal(arrays[name], kernel["a"])
    assert not any("base" in name or "embedding" in name for name in arrays)


def test_nothing_there_is_none_and_leaves_no_trace(tmp_path):
    with open_at(tmp_path / "absent") as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.restore(make_state(0)) is None
    assert names(tmp_path) == []


def test_a_step_is_saved_once(run):
    with open_at(run) as checkpoints:
        assert checkpoints.latest() == 20
        assert not checkpoints.save(20, make_state(99), {})
        assert checkpoints.save(30, make_state(30), {"position": 480})
        assert not checkpoints.save(30, make_state(99), {})
    assert_restores(run, 30)


def test_a_step_of_another_run_is_not_overwritten(run):
    with open_at(run) as checkpoints, pytest.raises(InputError, match="20 exists"):
        checkpoints.save(20, make_state(0), {})
    assert_restores(run, 20)


def test_donation_and_later_changes_do_not_reach_the_save(tmp_path):
    advance = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0
    )
    state = {"x": jnp.arange(2_000_000, dtype=jnp.float32), "y": jnp.zeros(3)}
    expected = jax.tree.map(np.array, state)
    extra = {"history": [1]}
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, state, extra)
        extra["history"].append(2)
        for _ in range(3):
            state = advance(state)
        restored, stored = checkpoints.restore(state)
    for name in expected:
        np.testing.assert_array_equal(restored[name], expected[name])
    assert stored == {"history": [1]}
    # What was restored can be donated in turn.
    np.testing.assert_array_equal(advance(restored)["x"], expected["x"] + 1)


def test_extra_that_is_not_json_is_refused_at_once(tmp_path):
    with open_at(tmp_path) as checkpoints, pytest.raises(TypeError):
        checkpoints.save(1, make_state(1), {"loss": np.float32(1)})
    assert names(tmp_path) == []


SHARDED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxpeft.rundir.checkpoint import Checkpoints

mesh = jax.make_mesh((2,), ("fsdp",))
on = lambda *axes: NamedSharding(mesh, P(*axes))
state = {
    "rows": jax.device_put(jnp.arange(8.0).reshape(4, 2), on("fsdp")),
    "columns": jax.device_put(jnp.arange(8.0).reshape(4, 2), on(None, "fsdp")),
    "key": jax.device_put(jax.random.key(3), on()),
    "empty": jax.device_put(jnp.zeros((0, 2)), on()),
}
with Checkpoints(Path(sys.argv[1]), save_total_limit=1, fingerprint={}) as checkpoints:
    checkpoints.save(1, state, {})
    restored, _ = checkpoints.restore(state)
    other = {**state, "rows": jax.device_put(state["rows"], on(None, "fsdp"))}
    moved, _ = checkpoints.restore(other)
for got, want in ((restored, state), (moved, other)):
    for name in state:
        assert got[name].sharding == want[name].sharding, name
        assert (got[name] == want[name]).all(), name
"""


@pytest.mark.slow
def test_shardings_are_those_asked_for(tmp_path, of_devices):
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    subprocess.run(command, env=of_devices(2), check=True)


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [["config"], ["data", "base"]])
def test_a_changed_fingerprint_is_an_error_that_names_it(two_steps, changed):
    fingerprint = {**FINGERPRINT, **dict.fromkeys(changed, "other")}
    with open_at(two_steps, fingerprint=fingerprint) as checkpoints:
        with pytest.raises(InputError) as failure:
            checkpoints.restore(make_state(0))
        state, _ = checkpoints.restore(make_state(0), check_fingerprint=False)
    message = str(failure.value)
    assert " and ".join(changed) + " changed" in message
    assert "output_dir" in message and "--resume anyway" in message
    assert not any(name + " " in message for name in FINGERPRINT.keys() - set(changed))
    assert_same(state, make_state(20))


def test_an_absent_fingerprint_entry_counts_as_changed(two_steps):
    with (
        open_at(two_steps, fingerprint={"config": "c0", "data": "d0"}) as checkpoints,
        pytest.raises(InputError, match="base changed"),
    ):
        checkpoints.restore(make_state(0))


@pytest.mark.parametrize(
    ("change", "stated"),
    [
        (lambda s: s.replace(skipped=jnp.float32(0)), "skipped: int32"),
        (lambda s: s.replace(skipped=jnp.zeros(2, jnp.int32)), "int32[2] in this run"),
        (lambda s: s.replace(opt_state=()), "absent in this run"),
        (lambda s: s.replace(params={**s.params, "new": s.step}), "params/new: absent"),
    ],
    ids=["dtype", "shape", "missing", "additional"],
)
def test_another_tree_is_an_error_and_never_a_cast(two_steps, change, stated):
    with open_at(two_steps) as checkpoints, pytest.raises(InputError) as failure:
        checkpoints.restore(change(make_state(0)))
    assert stated in str(failure.value)


def test_a_limit_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="save_total_limit is 0"):
        open_at(tmp_path, save_total_limit=0)


# Space and limits ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_newest_steps_stay(tmp_path):
    with open_at(tmp_path, save_total_limit=2) as checkpoints:
        for step in (5, 50, 100, 1000):
            checkpoints.save(step, make_state(step), {"position": step * 16})
            checkpoints.wait()
    assert names(tmp_path) == ["100", "1000"]
    assert_restores(tmp_path, 1000)


def test_an_old_step_stays_until_the_new_one_is_sealed(tmp_path, monkeypatch):
    write_steps(tmp_path, 10, save_total_limit=1)

    def full_disk(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_at(tmp_path, save_total_limit=1) as checkpoints:
        checkpoints.latest()
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "seal", full_disk)
            checkpoints.save(20, make_state(20), {})
            with pytest.raises(CheckpointError, match="step 10 is intact"):
                checkpoints.wait()
        assert "10" in names(tmp_path)
        checkpoints.save(20, make_state(20), {"position": 320})
    assert names(tmp_path) == ["20"]
    assert_restores(tmp_path, 20)


def test_a_full_disk_is_reported_and_the_last_step_survives(tmp_path, capfd):
    large = {"x": jax.random.normal(jax.random.key(0), (300_000,))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(10, large, {})
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            checkpoints.save(20, large, {})
            with pytest.raises(CheckpointError) as failure:
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        checkpoints.wait()
        assert checkpoints.latest() == 10
        restored, _ = checkpoints.restore(large)
        assert checkpoints.save(20, large, {})
    np.testing.assert_array_equal(restored["x"], large["x"])
    message = str(failure.value)
    assert "step 20 could not be written: File too large; step 10 is intact" in message
    assert isinstance(failure.value, InputError) and isinstance(failure.value, OSError)
    assert capfd.readouterr().err == ""
    assert names(tmp_path) == ["10", "20"]


def test_a_directory_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with (
        open_at(tmp_path / "file" / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match="Not a directory"),
    ):
        checkpoints.save(1, make_state(1), {})


def test_the_record_is_plain_json(two_steps):
    record = json.loads((two_steps / "20" / "record" / "metadata").read_text())
    assert record["fingerprint"] == FINGERPRINT
    assert record["extra"] == {"position": 320}
    assert record["layout"]["key"] == "key<fry>[]"

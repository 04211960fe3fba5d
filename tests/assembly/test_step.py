"""The training step: accumulation, packing, bad gradients, dropout, donation.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpeft import adapters, tree
from jaxpeft.assembly.places import make_places
from jaxpeft.assembly.step import (
    Frozen,
    TrainState,
    make_eval_step,
    make_loss,
    make_train_step,
)
from jaxpeft.data import Examples, collate
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import Compiled
from jaxpeft.objectives import sft

LOG = logging.getLogger(__name__)
KEY = jax.random.key(7)
LENGTHS = (9, 4, 13, 7, 5, 11, 3, 12)


@pytest.fixture(scope="module")
def model(make_llama):
    return make_llama(num_hidden_layers=2, hidden_size=16, intermediate_size=24)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    total = sum(LENGTHS)
    return Examples(
        tokens=rng.integers(1, 61, total).astype(np.int32),
        supervised=rng.random(total) < 0.5,
        starts=np.cumsum([0, *LENGTHS[:-1]]),
        lengths=np.array(LENGTHS),
        left_out=np.zeros(len(LENGTHS), np.int32),
        sources=(),
    )


def rows(examples, *members, length=16):
    return collate(examples, [np.asarray(m, int) for m in members], length, 0)


def accumulated(batch, parts):
    return {k: v.reshape(parts, -1, *v.shape[1:]) for k, v in batch.items()}


def split(model, dtype="float32", **settings):
    """(trainable, frozen) with an adapter that is no identity."""
    targets = ["q_proj", "v_proj", "down_proj"]  # a few, to compile fast
    rules = {"r": 4, "lora_alpha": 8, "target_modules": targets, **settings}
    rules["init_lora_weights"] = False
    base = jax.tree.map(lambda x: x.astype(dtype), model.params)
    params = adapters.inject(base, rules, jax.random.key(3))
    return tree.partition(params, adapters.trainable_mask(params))


# Plain descent at rate 1: the parameters move by the gradient itself.
DESCENT = optax.sgd(1.0)
ADAM = optax.adam(1e-2)


@pytest.fixture(scope="module")
def adam_step(model):
    return jax.jit(make_train_step(model.cfg, ADAM), donate_argnums=0)


@pytest.fixture(scope="module")
def step(model):
    return jax.jit(make_train_step(model.cfg, DESCENT))


@pytest.fixture(scope="module")
def parts(model):
    return split(model)


def gradient(step, parts, batch):
    """(gradient tree, metrics) of one step of descent."""
    trainable, frozen = parts
    start = TrainState.create(trainable, DESCENT, KEY)
    state, metrics = step(start, Frozen(frozen), batch)
    return jax.tree.map(lambda a, b: np.array(a) - b, trainable, state.params), metrics


def agree(what, found, expected):
    """Each tensor within 1e-5 of its largest entry."""
    apart = {
        name: float(np.max(np.abs(one - other)) / np.max(np.abs(other)))
        for (name, one), other in zip(
            tree.named_leaves(found), jax.tree.leaves(expected), strict=True
        )
    }
    LOG.info("%s: gradients apart by %.1e", what, max(apart.values()))
    assert max(apart.values()) < 1e-5, apart


@pytest.fixture(scope="module")
def unpacked(examples):
    """One example a row, padded on the right: no segments are needed."""
    batch = rows(examples, *([i] for i in range(8)))
    return {name: value for name, value in batch.items() if name != "segments"}


@pytest.fixture(scope="module")
def whole(step, parts, unpacked):
    return gradient(step, parts, accumulated(unpacked, 1))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.slow
def test_accumulation_gives_the_same_step(count, step, parts, unpacked, whole):
    batch = accumulated(unpacked, count)
    tokens = batch["supervised"].sum(axis=(1, 2))
    assert len(set(tokens.tolist())) > 1  # else means of means would do as well
    found, metrics = gradient(step, parts, batch)
    agree(f"{count} micro-batches", found, whole[0])
    for name in ("loss", "grad_norm", "weight"):
        np.testing.assert_allclose(metrics[name], whole[1][name], rtol=1e-5)


@pytest.mark.slow
def test_the_loss_alone_is_that_of_a_step_with_its_noise(model, parts, unpacked):
    trainable, frozen = parts
    objective = sft(neftune_noise_alpha=5.0)
    state, batch = TrainState.create(trainable, DESCENT, KEY), accumulated(unpacked, 2)
    loss = jax.jit(make_loss(model.cfg, objective))
    found, weight = loss(trainable, Frozen(frozen), KEY, state.step, batch)
    _, metrics = jax.jit(make_train_step(model.cfg, DESCENT, objective))(
        state, Frozen(frozen), batch
    )
    assert weight == metrics["weight"]
    np.testing.assert_allclose(found, metrics["loss"], rtol=1e-6)
    other, _ = loss(trainable, Frozen(frozen), KEY, state.step + 1, batch)
    assert abs(other - found) > 1e-4  # another step, other noise


@pytest.mark.slow
def test_a_state_in_the_hosts_memory_stays_there_and_changes_no_bit(
    model, parts, unpacked
):
    trainable, frozen = parts
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    batch = accumulated(unpacked, 2)
    params = tree.combine(trainable, frozen)
    found = []
    for offloads in (False, True):
        places = make_places(params, model.cfg, mesh, ADAM, offloads=offloads).state
        own = jax.tree.map(jnp.copy, trainable)
        state = TrainState.create(own, ADAM, jax.random.key(7))
        state = jax.device_put(state, places)
        step = Compiled(
            make_train_step(model.cfg, ADAM), "step", lambda text: None, carries=True
        )
        for _ in range(3):
            state, _ = step(state, Frozen(frozen), batch)
        moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
        kinds = {x.sharding.memory_kind for x in moments}
        assert kinds == {"pinned_host" if offloads else "device"}
        found.append(state)
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(one, other)


def test_a_part_without_targets_weighs_nothing(step, parts, unpacked):
    """The third of four parts has none, and the others unlike numbers of them."""
    supervised = unpacked["supervised"].copy()
    supervised[4:6] = False
    batch = {**unpacked, "supervised": supervised}
    found, metrics = gradient(step, parts, accumulated(batch, 4))
    expected, whole = gradient(step, parts, accumulated(batch, 1))
    agree("a part without targets", found, expected)
    assert metrics["weight"] == whole["weight"] == supervised.sum() > 0
    np.testing.assert_allclose(metrics["loss"], whole["loss"], rtol=1e-5)


@pytest.mark.slow
def test_packing_gives_the_same_loss_and_gradient(step, parts, examples, whole):
    packed = rows(examples, [0, 7], [5, 1, 6], [2], [3, 4], length=21)
    assert packed["segments"].max() == 3
    found, metrics = gradient(step, parts, accumulated(packed, 1))
    agree("packed", found, whole[0])
    total, expected = (m["loss"] * m["weight"] for m in (metrics, whole[1]))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert metrics["weight"] == whole[1]["weight"]


def test_a_batch_with_nothing_to_learn_has_no_weight(step, parts, unpacked):
    empty = unpacked | {"supervised": np.zeros_like(unpacked["supervised"])}
    found, metrics = gradient(step, parts, accumulated(empty, 1))
    assert [metrics[n] for n in ("weight", "grad_norm", "skipped_in_row")] == [0, 0, 0]
    assert not any(np.any(g) for g in jax.tree.leaves(found))


def test_metrics_are_what_they_say(model, parts, unpacked, whole):
    found, metrics = whole
    assert metrics["weight"] == unpacked["supervised"].sum()
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(found)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    # Descent at a rate of 1 moves by the gradient.
    np.testing.assert_allclose(metrics["update_norm"], norm, rtol=1e-4)
    sums = jax.jit(make_eval_step(model.cfg))(parts[0], Frozen(parts[1]), unpacked)
    np.testing.assert_allclose(sums.nll / sums.count, metrics["loss"], rtol=1e-5)


def adam_state(parts):
    """Of copies: the step takes them over."""
    copies = jax.tree.map(lambda x: jnp.asarray(np.array(x)), parts[0])
    return TrainState.create(copies, ADAM, jax.random.clone(KEY))


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_skipped(adam_step, parts, unpacked):
    step, frozen = adam_step, parts[1]
    norm = {"scale": frozen["model"]["norm"]["scale"].at[0].set(jnp.inf)}
    broken = {**frozen, "model": {**frozen["model"], "norm": norm}}
    batch = accumulated(unpacked, 1)
    state, _ = step(adam_state(parts), Frozen(frozen), batch)
    kept = [tree.digest(part) for part in (state.params, state.opt_state)]
    for in_row in (1, 2):
        state, metrics = step(state, Frozen(broken), batch)
        assert not np.isfinite(metrics["loss"])
        assert metrics["skipped_in_row"] == in_row == state.skipped
        assert metrics["update_norm"] == 0
        assert [tree.digest(p) for p in (state.params, state.opt_state)] == kept
    assert state.step == 3  # the batches are consumed all the same
    state, metrics = step(state, Frozen(frozen), batch)
    assert metrics["skipped_in_row"] == 0 and state.skipped == 2
    assert tree.digest(state.params) != kept[0]
    assert np.isfinite(metrics["loss"])


def test_nothing_supervised_is_no_division_by_zero(step, parts, unpacked):
    batch = {**unpacked, "supervised": np.zeros_like(unpacked["supervised"])}
    found, metrics = gradient(step, parts, accumulated(batch, 1))
    assert metrics["loss"] == 0 and metrics["skipped_in_row"] == 0
    assert all(not np.any(g) for g in jax.tree.leaves(found))


@pytest.fixture(scope="module")
def dropping(model, unpacked):
    """loss(supervised, **changes to the state) of one step that drops.

    Its two micro-batches are the same; supervised is of shape (2, 4, seq).
    """
    trainable, frozen = split(model, lora_dropout=0.5)
    step = jax.jit(make_train_step(model.cfg, DESCENT))
    start = TrainState.create(trainable, DESCENT, KEY)
    batch = {k: np.stack([v[:4], v[:4]]) for k, v in unpacked.items()}

    def loss(chosen=(1, 1), **changes):
        shown = batch["supervised"] & np.array(chosen, bool)[:, None, None]
        state = start.replace(**changes)
        micro = {**batch, "supervised": shown}
        return float(step(state, Frozen(frozen), micro)[1]["loss"])

    return loss


@pytest.mark.slow
def test_dropout_follows_the_step_and_the_key_and_repeats(dropping):
    assert dropping() == dropping()
    others = [dropping(step=jnp.int32(1)), dropping(key=jax.random.key(8))]
    assert len({dropping(), *others}) == 3


def test_micro_batches_drop_differently(dropping):
    first, second = dropping(chosen=(1, 0)), dropping(chosen=(0, 1))
    assert abs(first - second) > 1e-4


@pytest.mark.filterwarnings("error:Some donated buffers were not usable")
def test_the_state_can_be_donated(adam_step, parts, unpacked):
    state = adam_state(parts)
    new, _ = adam_step(state, Frozen(parts[1]), accumulated(unpacked, 1))
    for name, old in tree.named_leaves((state.params, state.opt_state, state.step)):
        assert old.is_deleted(), name
    assert not any(x.is_deleted() for x in jax.tree.leaves((new, parts)))


@pytest.mark.slow
def test_a_float16_base_trains_a_float32_adapter(step, model, unpacked, whole):
    parts = split(model, "float16")
    found, metrics = gradient(step, parts, accumulated(unpacked, 1))
    assert {g.dtype for g in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert metrics["skipped_in_row"] == 0
    np.testing.assert_allclose(metrics["loss"], whole[1]["loss"], rtol=0.03)
    flat, expected = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradients)])
        for gradients in (found, whole[0])
    )
    # The gradients point the same way.
    lengths = np.linalg.norm(flat) * np.linalg.norm(expected)
    assert flat @ expected > 0.98 * lengths

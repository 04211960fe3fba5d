"""Objectives of pairs: their references, and that a step is one however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import adapters, objectives, optim, tree
from jaxpeft.assembly.step import (
    Frozen,
    TrainState,
    make_eval_step,
    make_train_step,
)
from jaxpeft.errors import InputError
from jaxpeft.objectives import pairs, reference
from jaxpeft.objectives.sft import last_hidden

ROWS, LENGTH = 8, 12


@pytest.fixture(scope="module")
def llama(make_llama):
    return make_llama()


@pytest.fixture(scope="module")
def batch():
    """(1, rows, length): answers of unequal lengths, the last pair padding."""
    rng = np.random.default_rng(0)
    lengths, firsts = rng.integers(8, LENGTH, ROWS), rng.integers(2, 5, ROWS)
    places = np.arange(LENGTH)
    inside = places < lengths[:, None]
    inside[-2:] = False
    made = {
        "tokens": rng.integers(1, 61, (ROWS, LENGTH)) * inside,
        "targets": rng.integers(1, 61, (ROWS, LENGTH)),
        "positions": places * inside,
        # The last token of a row predicts none.
        "supervised": inside
        & (places >= firsts[:, None])
        & (places < lengths[:, None] - 1),
    }
    kinds = {"supervised": bool}
    return {n: x.astype(kinds.get(n, np.int32))[None] for n, x in made.items()}


def adapted(params, seed=0, **rules):
    rules = {"method": "lora", "r": 2, "lora_alpha": 8, **rules}
    return adapters.inject(params, rules, jax.random.key(seed))


def moved(params, seed=5):
    """The params with everything that trains somewhere else."""
    trains, frozen = tree.partition(params, adapters.trainable_mask(params))
    leaves, treedef = jax.tree.flatten(trains)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    own = [
        x + 0.1 * jax.random.normal(key, x.shape, x.dtype)
        for x, key in zip(leaves, keys, strict=True)
    ]
    return tree.combine(treedef.unflatten(own), frozen)


METHODS = {
    "lora": {"lora_dropout": 0.5},
    "dora": {"method": "dora"},
    "ia3": {"method": "ia3"},
    "vera": {"method": "vera"},
    "prompt": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "prefix": {"method": "prefix_tuning", "num_virtual_tokens": 3},
    "with weights": {"modules_to_save": ["norm"], "bias": "all"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "tokens": {"trainable_token_indices": [3, 5]},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_the_reference_with_the_adapter_off_is_the_bare_base(name, llama, batch):
    rules = dict(METHODS[name])
    if rules.get("method", "lora") != "lora":
        rules = {"r": None, "lora_alpha": None} | rules
    rules = {n: x for n, x in {**{"method": "lora", "r": 2}, **rules}.items() if x}
    params = adapters.inject(llama.params, rules, jax.random.key(0))
    held = reference.held("adapter_off", params)
    off = reference.model("adapter_off", moved(params), held)
    micro = {n: x[0] for n, x in batch.items()}
    found = last_hidden(off, micro, llama.cfg)
    bare = last_hidden(llama.params, micro, llama.cfg)
    np.testing.assert_allclose(found, bare, rtol=1e-6, atol=1e-6)
    on = last_hidden(moved(params), micro, llama.cfg)
    assert float(jnp.abs(on - bare).max()) > 1e-3


@pytest.mark.slow
def test_the_start_is_kept_while_the_adapter_moves(llama, batch):
    start = moved(adapted(llama.params), seed=1)
    held = reference.held("start", start)
    kept = reference.model("start", moved(start), held)
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(one, other)
    full = reference.model("start", moved(llama.params), llama.params)
    assert jax.tree.structure(full) == jax.tree.structure(llama.params)


OBJECTIVES = {
    "dpo": objectives.dpo(beta=0.5, sft_weight=0.3),
    "ipo": objectives.dpo(loss_type="ipo"),
    "orpo": objectives.orpo(),
    "simpo": objectives.simpo(sft_weight=0.1),
    "cpo": objectives.cpo(),
}


SLOW = {"ipo", "orpo", "cpo"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in OBJECTIVES
    ],
)
@pytest.mark.slow
def test_a_step_is_the_same_however_it_is_cut_for_accumulation(name, llama, batch):
    objective = OBJECTIVES[name]
    params = adapted(llama.params)
    held = objective.held(params)
    params = moved(params)
    trains, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optim.make({"name": "sgd", "learning_rate": 1.0}, {"name": "constant"}, 1)
    step = jax.jit(make_train_step(llama.cfg, tx, objective))
    ends = []
    for parts in (1, 4):
        state = TrainState.create(trains, tx, jax.random.key(0))
        cut = {n: x.reshape(parts, -1, LENGTH) for n, x in batch.items()}
        state, metrics = step(state, Frozen(frozen, held), cut)
        ends.append((state.params, metrics))
    assert float(ends[0][1]["weight"]) == ROWS // 2 - 1  # no padding
    assert float(ends[0][1]["grad_norm"]) > 1e-3
    leaves = (jax.tree.leaves(end) for end in ends)
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    evaluate = jax.jit(make_eval_step(llama.cfg, objective))
    whole = {n: x[0] for n, x in batch.items()}
    sums = jax.tree.map(float, evaluate(trains, Frozen(frozen, held), whole))
    told = objective.report(sums)
    np.testing.assert_allclose(told["eval_loss"], ends[0][1]["loss"], rtol=1e-5)
    for figure in ("rewards/margins", "logps/chosen", "rewards/accuracies"):
        expected = float(ends[0][1][figure])
        np.testing.assert_allclose(told[f"eval_{figure}"], expected, rtol=1e-5)
    assert "preferred in" in objective.in_words(told)


@pytest.mark.slow
def test_dropout_is_the_trained_model_s_alone(llama, batch):
    objective = objectives.dpo()
    params = adapted(llama.params, lora_dropout=0.5)
    micro = {n: x[0] for n, x in batch.items()} | {pairs.PER_TOKEN: 1.0}
    start = moved(params)
    held = objective.held(start)
    rewards = []
    for key in range(2):
        loss = objective.loss(start, held, micro, llama.cfg, jax.random.key(key))
        rewards.append(float(loss.metrics["rewards/chosen"][0]))
    assert rewards[0] != rewards[1]
    fresh = objective.loss(
        params, objective.held(params), micro, llama.cfg, jax.random.key(0)
    )
    assert abs(float(fresh.metrics["rewards/chosen"][0])) < 1e-4


def test_how_often_the_longer_answer_is_ahead():
    lengths = jnp.array([[3.0, 2.0], [2.0, 3.0], [4.0, 4.0], [5.0, 1.0]])
    answers = pairs.Answers(
        jnp.zeros((4, 2)), lengths, jnp.zeros((4, 2)), lengths, jnp.ones(4, bool)
    )
    rewards = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.5, 0.5]])
    sums = pairs.totals(answers, pairs.Terms(jnp.zeros(4), rewards))
    told = pairs.report(jax.tree.map(float, sums))
    assert told["eval_longer/rewarded"] == (1 + 0 + 0.5 + 0.5) / 4
    assert told["eval_longer/chosen"] == (1 + 0 + 0.5 + 1) / 4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: objectives.dpo(beta=0.0), "objective.beta: found 0.0; must be"),
        (lambda: objectives.dpo(label_smoothing=0.5), "less than 0.5"),
        (
            lambda: objectives.dpo(loss_type="hinge", label_smoothing=0.1),
            "no use for it; remove it, or use sigmoid or robust",
        ),
        (
            lambda: objectives.dpo(reference="adapter_off", base_trains=True),
            "objective.reference: found 'adapter_off'",
        ),
        (lambda: objectives.simpo(gamma=-1.0), "objective.gamma: found -1.0"),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_which_reference_a_run_has():
    chosen = reference.chosen
    assert chosen("auto", continues=False, base_trains=False) == "adapter_off"
    assert chosen("auto", continues=True, base_trains=False) == "start"
    assert chosen("auto", continues=False, base_trains=True) == "start"
    assert chosen("none", continues=True, base_trains=False) == "none"
    assert chosen("adapter_off", continues=True, base_trains=False) == "adapter_off"

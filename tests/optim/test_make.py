"""Optimizers from configuration: names, aliases, keys, clipping, the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from jaxpeft import config, optim, tree
from jaxpeft.errors import InputError

CONSTANT = {"name": "constant"}
PARAMS = {"w": jnp.zeros(4)}


def steps(tx, grads):
    """The update of each gradient in turn."""
    state, found = tx.init(PARAMS), []
    for grad in grads:
        updates, state = tx.update({"w": jnp.asarray(grad)}, state, PARAMS)
        found.append(np.asarray(updates["w"]))
    return found


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS.aliases))
def test_aliases_mean_the_same(name):
    """A configuration with the alias is the one with the name."""
    sections = [
        config.parse_section("optimizer", {"name": n}, optim.OPTIMIZERS)
        for n in (name, optim.OPTIMIZERS.aliases[name])
    ]
    assert sections[0].offload == name.startswith("paged_")
    assert sections[0].model_copy(update={"offload": False}) == sections[1]
    assert isinstance(optim.OPTIMIZERS.found(sections[0].name), optim.Optimizer)


# What users of transformers bring along, and what it is here.
TRANSFORMERS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_adamw_32bit": "adamw",
    "lion_32bit": "lion",
    "paged_lion_32bit": "lion",
    "lion_8bit": "lion_8bit",
    "paged_lion_8bit": "lion_8bit",
    "apollo_adamw": "apollo",
    "galore_adamw": "galore",
    "grokadamw": "grokadamw",
    "lomo": "lomo",
    "adalomo": "adalomo",
    "schedule_free_adamw": "schedule_free_adamw",
    "schedule_free_sgd": "schedule_free_sgd",
    "schedule_free_radam": "schedule_free_radam",
    "stable_adamw": "stable_adamw",
    "adafactor": "adafactor",
    "sgd": "sgd",
    "rmsprop": "rmsprop",
    "adagrad": "adagrad",
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_names_are_known(name):
    assert name in {*transformers.training_args.OptimizerNames}
    assert optim.OPTIMIZERS.resolve(name) == TRANSFORMERS[name]


def test_the_schedule_sets_the_rate():
    tx = optim.make(
        {"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.0},
        {"name": "linear", "warmup_steps": 2},
        4,
    )
    # Equal gradients give Adam steps of the rate itself.
    found = [float(-u[0]) for u in steps(tx, [np.full(4, 1e-3)] * 4)]
    np.testing.assert_allclose(found, [0.0, 0.05, 0.1, 0.05], rtol=1e-3)


def test_the_global_norm_is_clipped_before_the_moments():
    def second(limit):
        section = {"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.0}
        tx = optim.make({**section, "max_grad_norm": limit}, CONSTANT, 2)
        return steps(tx, [np.full(4, 50.0), np.full(4, 0.1)])[1]

    # Clipped to norm 1, an entry of 50 counts as 0.5.
    mu = (0.9 * 0.1 * 0.5 + 0.1 * 0.1) / (1 - 0.9**2)
    nu = (0.999 * 0.001 * 0.25 + 0.001 * 0.01) / (1 - 0.999**2)
    np.testing.assert_allclose(second(1.0), -mu / nu**0.5, rtol=1e-4)
    assert not np.allclose(second(1.0), second(None), rtol=1e-2)
    assert not np.allclose(second(1.0), second(0.5), rtol=1e-2)


def test_keys_reach_the_optimizer():
    section = {"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.0}
    tx = optim.make({**section, "eps": 1.0, "max_grad_norm": None}, CONSTANT, 1)
    np.testing.assert_allclose(steps(tx, [np.ones(4)])[0], -0.5, rtol=1e-5)


# A norm's scale and a bias beside a matrix, in a stack of two layers; and LoRA's two.
TREE = {
    "layers": {
        "norm": {"scale": jnp.ones((2, 4))},
        "mlp": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))},
        "q_proj": {"kernel": {"a": jnp.ones((2, 4, 2)), "b": jnp.ones((2, 2, 4))}},
    }
}


def moved(**keys):
    """How far each leaf goes at gradient 1, by name: once the rate, or its decay."""
    section = {"name": "sgd", "learning_rate": 1.0, "max_grad_norm": None, **keys}
    tx = optim.make(section, CONSTANT, 1)
    ones = jax.tree.map(jnp.ones_like, TREE)
    updates, _ = tx.update(ones, tx.init(TREE), TREE)
    return {
        name.removeprefix("layers."): round(-float(jnp.mean(value)), 6)
        for name, value in tree.named_leaves(updates)
    }


def test_biases_and_norms_do_not_decay_unless_told():
    assert moved(weight_decay=0.5) == {
        "norm.scale": 1.0,
        "mlp.kernel": 1.5,
        "mlp.bias": 1.0,
        "q_proj.kernel.a": 1.5,
        "q_proj.kernel.b": 1.5,
    }
    assert set(moved(weight_decay=0.5, decay_all=True).values()) == {1.5}


def test_the_first_group_that_matches_counts():
    groups = [
        {"pattern": r".*mlp\..*", "learning_rate_factor": 0.5, "weight_decay": 0.0},
        {"pattern": r".*(kernel|scale)", "learning_rate_factor": 2.0},
    ]
    assert moved(weight_decay=0.5, groups=groups) == {
        "norm.scale": 2.0,
        "mlp.kernel": 0.5,
        "mlp.bias": 0.5,
        "q_proj.kernel.a": 1.5,
        "q_proj.kernel.b": 1.5,
    }


def test_lora_plus_gives_b_a_rate_of_its_own():
    found = moved(lora_plus_ratio=16.0)
    assert found.pop("q_proj.kernel.b") == 16.0
    assert set(found.values()) == {1.0}


def test_a_rate_of_its_own_is_that_of_an_optimizer_alone():
    """A group's factor acts as another learning rate, moments and all."""
    grads = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    section = {"name": "adamw", "weight_decay": 0.1, "learning_rate": 1e-3}
    group = {"pattern": "w", "learning_rate_factor": 3.0}
    found, alone = (
        steps(optim.make({**section, **keys}, CONSTANT, 5), grads)
        for keys in ({"groups": [group]}, {"learning_rate": 3e-3})
    )
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_schedule_free_warms_up_by_itself():
    section = {"name": "schedule_free_sgd", "learning_rate": 1.0, "momentum": 0.9}
    schedule = {"name": "constant", "warmup_steps": 4}
    made = optim.make_parts(section, schedule, 10)
    rates = [float(made.rate(i)) for i in range(6)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    ours = steps(made.chain(), np.full((3, 4), 0.1, np.float32))
    direct = optim.schedule_free_sgd(1.0, warmup_steps=4)
    np.testing.assert_array_equal(ours, steps(direct, np.full((3, 4), 0.1, np.float32)))


def test_relative_steps_need_no_rate():
    section = {"name": "adafactor", "relative_step": True, "max_grad_norm": None}
    made = optim.make_parts({**section, "warmup_init": True}, CONSTANT, 10)
    np.testing.assert_allclose([made.rate(0), made.rate(9)], [1e-6, 1e-5], rtol=1e-6)
    first = steps(made.chain(), np.ones((1, 4), np.float32))[0]
    np.testing.assert_allclose(first, -1e-6, rtol=1e-4)


def test_a_plateau_scales_what_the_optimizer_does():
    section = {"name": "sgd", "learning_rate": 1.0, "max_grad_norm": None}
    schedule = {"name": "reduce_lr_on_plateau", "patience": 0, "factor": 0.5}
    tx = optim.make(section, schedule, 10)
    state, ones = tx.init(PARAMS), {"w": jnp.ones(4)}
    for loss in (1.0, 2.0):
        state = optim.observe(state, loss)
    updates, _ = tx.update(ones, state, PARAMS)
    np.testing.assert_allclose(updates["w"], -0.5)
    assert float(optim.rate_factor(state)) == 0.5


def problems(optimizer, schedule=CONSTANT):
    with pytest.raises(InputError) as caught:
        optim.make(optimizer, schedule, 10)
    return caught.value.problems


MISTAKES = {
    "name": ({"name": "adamm"}, "optimizer.name: found 'adamm'.*did you mean 'adamw'"),
    "key": ({"name": "adamw", "beta1": 0.8}, "optimizer.beta1: found 0.8.*b1'"),
    "type": ({"name": "adamw", "b1": "high"}, "optimizer.b1: found 'high'.*number"),
    "given": ({"name": "adamw", "mask": None}, "optimizer.mask"),
    "rate": ({"name": "adamw", "learning_rate": -1.0}, "optimizer.learning_rate"),
    "float32's rate": (
        {"name": "adamw", "learning_rate": 1e39},
        r"optimizer.learning_rate: found 1e\+39; must be at most 3.4e\+38",
    ),
    "float32's decay": (
        {"name": "adamw", "weight_decay": 1e39},
        r"optimizer.weight_decay: found 1e\+39; .*at most 3.4e38",
    ),
    "float32's factor": (
        {"name": "lion", "groups": [{"pattern": "x", "learning_rate_factor": 1e39}]},
        r"optimizer.groups\S*learning_rate_factor: found 1e\+39; must be at most",
    ),
    "clipping": ({"name": "adamw", "max_grad_norm": 0.0}, "optimizer.max_grad_norm"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    section, message = MISTAKES[name]
    found = problems(section)
    assert len(found) == 1
    with pytest.raises(InputError, match=message):
        raise InputError(*found)


def test_several_mistakes_at_once():
    section = {"name": "adamw", "b3": 1.0, "eps": "tiny", "learning_rate": "fast"}
    assert len(problems(section)) == 3


def test_the_transformation_works_under_jit_without_recompiling():
    tx = optim.make({"name": "adamw"}, {"name": "cosine"}, 10)
    traces = []

    @jax.jit
    def update(grads, state):
        traces.append(1)
        return tx.update(grads, state, PARAMS)

    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = update({"w": jnp.ones(4)}, state)
    assert len(traces) == 1

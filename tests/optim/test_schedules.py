"""Learning rates against transformers' and torch's schedules over whole runs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.optim import lr_scheduler

from jaxpeft.errors import InputError
from jaxpeft.optim import schedules
from jaxpeft.optim.schedules.table import SCHEDULES, make_scale, make_schedule

RATE, STEPS = 3e-4, 40


def run(optimizer, schedule, steps):
    """The rate of every step, as a training loop in torch would use it."""
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


def reference(name, warmup, steps=STEPS, taken=None, **settings):
    """The rates of transformers' schedule of this name, also of steps past its end."""
    optimizer = sgd()
    schedule = transformers.get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=settings,
    )
    return run(optimizer, schedule, taken or steps)


def stairs(warmup, make):
    """The rates of a schedule of torch's behind a warmup."""
    optimizer = sgd()
    schedule = make(optimizer)
    if warmup:
        # LinearLR cannot start at 0, so that the first rate is put right below.
        first = lr_scheduler.LinearLR(optimizer, 1e-9, 1.0, warmup)
        schedule = lr_scheduler.SequentialLR(optimizer, [first, schedule], [warmup])
    return run(optimizer, schedule, STEPS)


def rates(schedule, steps=STEPS):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


def same(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6 * RATE, rtol=1e-6)


WARMUPS = {
    "none": ({}, 0),
    "zero": ({"warmup_steps": 0}, 0),
    "steps": ({"warmup_steps": 7}, 7),
    "one step": ({"warmup_steps": 1}, 1),
    "ratio": ({"warmup_ratio": 0.1}, 4),
    "ratio rounded up": ({"warmup_ratio": 0.06}, 3),
    "most": ({"warmup_steps": STEPS - 15}, STEPS - 15),
}
LIKE = "cosine_with_min_lr", "cosine_warmup_with_min_lr"
OPTIONS = [
    ("constant_with_warmup", {}),
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 0.25}),
    ("cosine", {"num_cycles": 2.0}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 2}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("cosine_with_restarts", {"num_cycles": 5}),
    ("polynomial", {}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-5}),
    ("polynomial", {"power": 0.5, "lr_end": 0.0}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 5}),
    *((name, {"min_lr": 2e-5}) for name in LIKE),
    *((name, {"min_lr_rate": 0.1}) for name in LIKE),
    *((name, {"min_lr_rate": 0.0, "num_cycles": 1.5}) for name in LIKE),
    ("cosine_warmup_with_min_lr", {"min_lr": 0.0, "warmup_lr_rate": 0.2}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-5, "warmup_lr_rate": 0.0}),
]


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name, settings", OPTIONS)
def test_every_rate_is_transformers(name, settings, warmup):
    keys, steps = WARMUPS[warmup]
    schedule = make_schedule(RATE, {"name": name, **keys, **settings}, STEPS)
    same(rates(schedule), reference(name, steps, **settings))


FORMS = ["linear", "cosine", "1-sqrt"]
STABLE = [
    *({"warmup_type": up, "decay_type": down} for up in FORMS for down in FORMS),
    {"decay_type": "cosine", "num_cycles": 1.5},
    {"stable_steps": 0},
    {"stable_steps": 3},
]


@pytest.mark.parametrize("ratio", [0.0, 0.1])
@pytest.mark.parametrize("warmup", ["none", "one step", "steps"])
@pytest.mark.parametrize("settings", STABLE)
def test_warmup_stable_decay_is_transformers(settings, warmup, ratio):
    keys, steps = WARMUPS[warmup]
    own = {**settings, "min_lr_ratio": ratio}
    section = {"name": "warmup_stable_decay", "decay_steps": 12, **keys, **own}
    stable = own.pop("stable_steps", STEPS - steps - 12)
    found = rates(make_schedule(RATE, section, STEPS))
    name = "warmup_stable_decay"
    # With both lengths transformers warns, so that it is given those that it uses.
    optimizer = sgd()
    lengths = {"num_warmup_steps": steps, "num_stable_steps": stable}
    scheduler = transformers.get_wsd_schedule(
        optimizer, num_decay_steps=12, **lengths, **own
    )
    same(found, run(optimizer, scheduler, STEPS))
    if "stable_steps" not in settings:
        same(found, reference(name, steps, num_decay_steps=12, **own))


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize(
    "settings", [{"step_size": 1}, {"step_size": 6, "gamma": 0.5}, {"step_size": 99}]
)
def test_step_is_torch_step_lr(settings, warmup):
    keys, steps = WARMUPS[warmup]
    found = rates(make_schedule(RATE, {"name": "step", **keys, **settings}, STEPS))
    expected = stairs(steps, lambda o: lr_scheduler.StepLR(o, **settings))
    same(found[bool(steps) :], expected[bool(steps) :])
    assert steps == 0 or found[0] == 0


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_milestones_are_torch_multi_step_lr(gamma, warmup):
    keys, steps = WARMUPS[warmup]
    own = {"milestones": [1, 5, 14, 90], "gamma": gamma}
    found = rates(make_schedule(RATE, {"name": "step", **keys, **own}, STEPS))
    expected = stairs(steps, lambda o: lr_scheduler.MultiStepLR(o, **own))
    same(found[bool(steps) :], expected[bool(steps) :])


def test_constant_without_warmup():
    for name in ("constant", "greedy", "reduce_lr_on_plateau"):
        own = {"min_lr": 1e-5} if name == "greedy" else {}
        found = rates(make_schedule(RATE, {"name": name, **own}, STEPS))
        np.testing.assert_allclose(found, reference("constant", 0), rtol=1e-6)


LONG = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 4},
    "polynomial": {"power": 0.5},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_run(name):
    own = LONG[name]
    schedule = getattr(schedules, name)(RATE, 5000, 500, **own)
    same(rates(schedule, 5000), reference(name, 500, 5000, **own))


def test_a_long_stable_run():
    own = {"warmup_type": "1-sqrt", "decay_type": "1-sqrt"}
    schedule = schedules.warmup_stable_decay(RATE, 9000, 3000, decay_steps=3000, **own)
    optimizer = sgd()
    expected = transformers.get_wsd_schedule(optimizer, 3000, 3000, 9000, **own)
    same(rates(schedule, 9000), run(optimizer, expected, 9000))


# What each schedule ends at, over the rate.
ENDS = {
    "constant": ({}, 1.0),
    "linear": ({}, 0.0),
    "cosine": ({}, 0.0),
    "cosine_with_restarts": ({"num_cycles": 3}, 0.0),
    "polynomial": ({"lr_end": 3e-5}, 0.1),
    "inverse_sqrt": ({"timescale": 12}, 0.5),
    "cosine_with_min_lr": ({"min_lr_rate": 0.1}, 0.1),
    "cosine_warmup_with_min_lr": ({"min_lr_rate": 0.1}, 0.1),
    "warmup_stable_decay": ({"decay_steps": 9, "min_lr_ratio": 0.2}, 0.2),
    "step": ({"step_size": 12, "gamma": 0.5}, 0.125),
    "reduce_lr_on_plateau": ({}, 1.0),
    "greedy": ({"min_lr": 1e-6}, 1.0),
}


def test_all_ends_are_known():
    assert set(ENDS) == set(SCHEDULES.entries)


@pytest.mark.parametrize("name", ENDS)
def test_past_the_last_step_the_rate_stays(name):
    own, end = ENDS[name]
    schedule = make_schedule(RATE, {"name": name, "warmup_steps": 4, **own}, STEPS)
    beyond = [float(schedule(step)) for step in (STEPS, STEPS + 1, 10 * STEPS)]
    np.testing.assert_allclose(beyond, end * RATE, atol=1e-6 * RATE)


@pytest.mark.parametrize(
    "name", ["cosine", "cosine_with_min_lr", "cosine_warmup_with_min_lr"]
)
def test_a_strict_cosine_rises_again_as_transformers_does(name):
    own, _ = ENDS[name]
    section = {"name": name, "warmup_steps": 4, "strict": True, **own}
    found = rates(make_schedule(RATE, section, STEPS), 2 * STEPS)
    same(found, reference(name, 4, taken=2 * STEPS, **own))
    assert found[int(1.7 * STEPS)] > 2 * found[STEPS] + 1e-3 * RATE


@pytest.mark.parametrize("name", ENDS)
def test_rates_are_float32_scalars_in_a_scan(name):
    schedule = make_schedule(RATE, {"name": name, **ENDS[name][0]}, STEPS)
    _, found = jax.lax.scan(lambda s, _: (s + 1, schedule(s)), 0, length=STEPS)
    assert found.dtype == jnp.float32 and found.shape == (STEPS,)
    # Compiled, a division may be a product, which is rounded otherwise.
    same(found, [schedule(s) for s in range(STEPS)])


@pytest.mark.parametrize("name", ENDS)
def test_a_run_that_only_warms_up(name):
    own = {"decay_steps": 0} if name == "warmup_stable_decay" else ENDS[name][0]
    schedule = make_schedule(RATE, {"name": name, "warmup_steps": 6, **own}, 6)
    shift = name == "cosine_warmup_with_min_lr"
    same(rates(schedule, 6), RATE * (np.arange(6) + shift) / 6)


@pytest.mark.parametrize("alias", SCHEDULES.aliases)
def test_aliases_mean_the_same(alias):
    name = SCHEDULES.aliases[alias]
    own = {**ENDS[name][0], "warmup_steps": 3}
    found, expected = (
        rates(make_schedule(RATE, {"name": n, **own}, STEPS)) for n in (alias, name)
    )
    np.testing.assert_array_equal(found, expected)


def test_transformers_names_are_all_known():
    names = {kind.value for kind in transformers.SchedulerType}
    assert names <= {*SCHEDULES.entries, *SCHEDULES.aliases}


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("reduce_lr_on_plateau", lr_scheduler.ReduceLROnPlateau),
        ("greedy", transformers.optimization.GreedyLR),
    ],
)
def test_keys_and_defaults_are_theirs(name, theirs):
    expected = {
        key: parameter.default
        for key, parameter in inspect.signature(theirs).parameters.items()
        if key not in ("optimizer", "verbose")
    }
    parameters = SCHEDULES.parameters(name)
    found = {key: parameters[key].default for key in SCHEDULES.keys(name)}
    assert found == expected


def problems(schedule, steps=STEPS, rate=RATE):
    with pytest.raises(InputError) as caught:
        make_schedule(rate, schedule, steps)
    return caught.value.problems


def test_mistakes_are_named():
    (found,) = problems({"name": "cosin"})
    assert "schedule.name" in found and "did you mean 'cosine'" in found
    (found,) = problems({"name": "cosine", "num_cycle": 1.0})
    assert "schedule.num_cycle" in found and "'num_cycles'" in found
    (found,) = problems({"name": "linear", "warmup_steps": STEPS + 1})
    assert "schedule.warmup_steps: found 41" in found and "40 steps" in found
    (found,) = problems({"name": "linear", "warmup_steps": 2, "warmup_ratio": 0.1})
    assert "warmup_ratio" in found
    assert "total_steps" in problems({"name": "linear", "total_steps": 3})[0]


BOTH = {"min_lr": 1e-5, "min_lr_rate": 0.1}
WRONG = [
    ("cosine", {"num_cycles": 0.0}, "num_cycles: found 0.0; must be a number above"),
    ("cosine_with_restarts", {"num_cycles": 0}, "num_cycles: found 0; must be 1"),
    ("cosine_with_restarts", {"num_cycles": 1.5}, "num_cycles: found 1.5"),
    ("polynomial", {"power": -1.0}, "power: found -1.0"),
    ("polynomial", {"lr_end": RATE}, "lr_end: found 0.0003; must be below optimizer."),
    ("polynomial", {"lr_end": -1e-9}, "lr_end: found -1e-09"),
    ("inverse_sqrt", {"timescale": 0}, "timescale: found 0; must be 1 or more"),
    *((name, {}, "min_lr: is missing; give it") for name in LIKE),
    *((name, BOTH, "min_lr: found 1e-05 beside schedule.min_lr_rate") for name in LIKE),
    *((name, {"min_lr": 1e-3}, "min_lr: found 0.001; must be from 0") for name in LIKE),
    (LIKE[0], {"min_lr_rate": 1.5}, "min_lr_rate: found 1.5; must be from 0 to 1"),
    (LIKE[1], {"min_lr": 0.0, "warmup_lr_rate": -0.1}, "warmup_lr_rate: found -0.1"),
    ("wsd", {}, "decay_steps: is missing"),
    ("wsd", {"decay_steps": 41}, "decay_steps: found 41; with 0 steps of warmup"),
    ("wsd", {"decay_steps": 31, "warmup_steps": 10}, "decay_steps: found 31; with 10"),
    ("wsd", {"decay_steps": 9, "stable_steps": 32}, "and 32 stable ones"),
    ("wsd", {"decay_steps": 9, "stable_steps": -1}, "stable_steps: found -1"),
    ("wsd", {"decay_steps": 9, "decay_type": "sqrt"}, "decay_type: found 'sqrt'"),
    ("wsd", {"decay_steps": 9, "min_lr_ratio": 2.0}, "min_lr_ratio: found 2.0"),
    ("step", {}, "step_size: is missing; give the steps"),
    ("step", {"step_size": 3, "milestones": [4]}, "step_size: found 3 beside"),
    ("step", {"step_size": 0}, "step_size: found 0"),
    ("step", {"milestones": []}, "milestones: found []"),
    ("step", {"milestones": [4, 4]}, "milestones: found [4, 4]; must be a list of ris"),
    ("step", {"step_size": 3, "gamma": 1.5}, "gamma: found 1.5; must be from 0 to 1"),
    ("plateau", {"factor": 1.0}, "factor: found 1.0; must be below 1"),
    ("plateau", {"factor": 0.0}, "factor: found 0.0; must be a number above 0"),
    ("plateau", {"patience": -1}, "patience: found -1"),
    ("plateau", {"min_lr": 1e-3}, "min_lr: found 0.001; must be below optimizer.learn"),
    ("plateau", {"mode": "least"}, "mode: found 'least'"),
    ("greedy", {}, "min_lr: found 0.001; must be below optimizer.learning_rate"),
    ("greedy", {"min_lr": 0.0, "max_lr": 1e-4}, "max_lr: found 0.0001; must be at lea"),
    ("greedy", {"min_lr": 0.0, "window_size": 0}, "window_size: found 0"),
    ("greedy", {"min_lr": 0.0, "verbose": True}, "verbose: found true"),
]


@pytest.mark.parametrize("name, own, message", WRONG)
def test_settings_that_make_no_sense(name, own, message):
    (found,) = problems({"name": name, **own})
    assert found.startswith(f"schedule.{message}") or message in found
    assert "schedule." in found


def test_all_problems_at_once():
    own = {"name": "wsd", "decay_steps": 50, "min_lr_ratio": 2.0, "num_cycles": 0.0}
    assert len(problems(own)) == 3
    greedy = {"name": "greedy", "factor": 2.0, "patience": -1, "threshold": -1.0}
    assert len(problems(greedy)) == 4


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", ENDS)
def test_a_rate_is_a_finite_number(name, rate):
    own = {**ENDS[name][0]}
    found = problems({"name": name, **own}, rate=rate)
    assert any(f"optimizer.learning_rate: found {rate}" in line for line in found)


def test_no_rate_at_all():
    for name in sorted(set(ENDS) - {"polynomial", "reduce_lr_on_plateau", "greedy"}):
        schedule = make_schedule(0.0, {"name": name, **ENDS[name][0]}, STEPS)
        np.testing.assert_array_equal(rates(schedule), 0.0)
    for name in ("reduce_lr_on_plateau", "greedy"):
        assert "optimizer.learning_rate" in problems({"name": name}, rate=0.0)[0]


def test_calls_are_checked_too():
    with pytest.raises(InputError, match="schedule.warmup_steps: found 5; the run"):
        schedules.linear(RATE, 4, 5)
    with pytest.raises(InputError, match="schedule.warmup_steps: found -1"):
        schedules.linear(RATE, 4, -1)
    with pytest.raises(InputError, match="schedule.warmup_type: found 'cubic'"):
        schedules.warmup_stable_decay(RATE, 9, decay_steps=3, warmup_type="cubic")


def test_only_what_evaluations_steer_has_a_scale():
    for name, (own, _) in ENDS.items():
        steered = name in ("reduce_lr_on_plateau", "greedy")
        assert (make_scale({"name": name, **own}, RATE) is not None) == steered


@pytest.mark.parametrize("ratio", [-0.1, 1.1, "a tenth"])
def test_a_ratio_is_from_0_to_1(ratio):
    assert (
        "schedule.warmup_ratio"
        in problems({"name": "linear", "warmup_ratio": ratio})[0]
    )

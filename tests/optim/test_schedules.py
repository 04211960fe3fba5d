"""Learning rates against transformers' schedules over whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import optim
from jaxpeft.errors import InputError
from jaxpeft.optim import schedules

RATE, STEPS = 3e-4, 40


def reference(name, warmup, steps=STEPS):
    """The rate of every step, as a training loop in torch would use it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    schedule = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def rates(schedule, steps=STEPS):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)))


WARMUPS = {
    "none": ({}, 0),
    "zero": ({"warmup_steps": 0}, 0),
    "steps": ({"warmup_steps": 7}, 7),
    "one step": ({"warmup_steps": 1}, 1),
    "ratio": ({"warmup_ratio": 0.1}, 4),
    "ratio rounded up": ({"warmup_ratio": 0.06}, 3),
    "all": ({"warmup_steps": STEPS}, STEPS),
}


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("name", ["constant_with_warmup", "linear", "cosine"])
def test_every_rate_is_transformers(name, warmup):
    settings, steps = WARMUPS[warmup]
    schedule = optim.make_schedule(RATE, {"name": name, **settings}, STEPS)
    expected = reference(name, steps)
    np.testing.assert_allclose(rates(schedule), expected, atol=1e-6 * RATE, rtol=1e-6)


def test_constant_without_warmup():
    schedule = optim.make_schedule(RATE, {"name": "constant"}, STEPS)
    np.testing.assert_allclose(rates(schedule), reference("constant", 0), rtol=1e-6)


def test_a_long_run():
    schedule = schedules.cosine(RATE, 5000, 500)
    expected = reference("cosine", 500, 5000)
    np.testing.assert_allclose(
        rates(schedule, 5000), expected, atol=1e-6 * RATE, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_past_the_last_step_the_rate_stays(name):
    schedule = getattr(schedules, name)(RATE, STEPS, 4)
    beyond = [float(schedule(step)) for step in (STEPS, STEPS + 1, 10 * STEPS)]
    np.testing.assert_allclose(beyond, 0.0, atol=1e-6 * RATE)


def test_more_cycles():
    schedule = schedules.cosine(RATE, STEPS, num_cycles=1.5)
    found = rates(schedule)
    np.testing.assert_allclose(
        found, RATE * (1 + np.cos(3 * np.pi * np.arange(STEPS) / STEPS)) / 2, atol=1e-9
    )


def problems(schedule, steps=STEPS):
    with pytest.raises(InputError) as caught:
        optim.make_schedule(RATE, schedule, steps)
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


@pytest.mark.parametrize("ratio", [-0.1, 1.1, "a tenth"])
def test_a_ratio_is_from_0_to_1(ratio):
    assert (
        "schedule.warmup_ratio"
        in problems({"name": "linear", "warmup_ratio": ratio})[0]
    )

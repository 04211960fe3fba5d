"""A learning rate carried over to another batch size."""

import numpy as np
import pytest

from jaxpeft import config, optim
from jaxpeft.assembly import configuration, updates
from jaxpeft.errors import InputError


@pytest.fixture
def parsed(tmp_path):
    """parsed(**sections): a configuration of these beside what every one needs."""

    def parse(**sections):
        needed = {
            "output_dir": str(tmp_path / "run"),
            "model": {"path": "model"},
            "data": {"train": {"path": "train.json"}},
            "schedule": {"name": "constant"},
        }
        return config.parse({**needed, **sections}, tables=configuration.TABLES)

    return parse


def scaled(rule, size=64, reference=16):
    sizes = {"batch_size": size, "lr_reference_batch_size": reference}
    return {"training": {"lr_scaling": rule, **sizes}}


@pytest.mark.parametrize(
    "rule, size, factor, said",
    [
        ("linear", 64, 4.0, "learning rate: 0.0002 x 64 / 16 = 0.0008"),
        ("sqrt", 64, 2.0, "learning rate: 0.0002 x sqrt(64 / 16) = 0.0004"),
        ("sqrt", 4, 0.5, "learning rate: 0.0002 x sqrt(4 / 16) = 0.0001"),
    ],
)
def test_the_rate_of_every_step_is_scaled_and_said(rule, size, factor, said, parsed):
    cfg = parsed(**scaled(rule, size), optimizer={"learning_rate": 2e-4})
    made = updates.updates(cfg, 10)
    np.testing.assert_allclose(made.rate(3), 2e-4 * factor, rtol=1e-6)
    assert updates.scaling_line(cfg) == said
    # What a run writes is what was given, and reads back the same.
    again = config.parse(cfg.model_dump(), tables=configuration.TABLES)
    assert again == cfg and again.optimizer.learning_rate == 2e-4


def test_without_a_rule_the_rate_is_as_given(parsed):
    cfg = parsed(optimizer={"learning_rate": 3e-4})
    assert updates.learning_rate(cfg) == 3e-4
    assert updates.scaling_line(cfg) is None


def test_a_lowest_rate_stays_and_a_share_follows(parsed):
    def end(**schedule):
        schedule = {"name": "cosine_with_min_lr", **schedule}
        rate = {"learning_rate": 1e-3}
        cfg = parsed(**scaled("linear"), optimizer=rate, schedule=schedule)
        return updates.updates(cfg, 10).rate(10)

    np.testing.assert_allclose(end(min_lr=1e-4), 1e-4, rtol=1e-5)
    np.testing.assert_allclose(end(min_lr_rate=0.1), 4e-4, rtol=1e-5)


def test_larger_batches_at_a_linear_rate_keep_sgds_course():
    """k steps of batches of 1 are nearly one of all of them (Goyal et al., eq. 3-4)."""
    targets, rate = np.array([0.9, 1.1, 1.0, 1.2]), 1e-3
    small = 0.0
    for target in targets:
        small -= rate * (small - target)
    large = optim.scaled_rate(rate, "linear", 4, 1) * targets.mean()
    np.testing.assert_allclose(large, small, rtol=5e-3)


REFUSED = {
    "no reference": (
        {"training": {"lr_scaling": "sqrt"}},
        "training.lr_scaling: found 'sqrt' without lr_reference_batch_size",
    ),
    "a reference for nothing": (
        {"training": {"lr_reference_batch_size": 8}},
        "training.lr_reference_batch_size: found 8 with lr_scaling none",
    ),
    "a rule that is none": ({"training": {"lr_scaling": "log"}}, "lr_scaling: found"),
    "prodigy": (
        {**scaled("sqrt"), "optimizer": {"name": "prodigy", "learning_rate": 1.0}},
        "'prodigy' finds the rate by itself",
    ),
    "relative steps": (
        {**scaled("sqrt"), "optimizer": {"name": "adafactor", "relative_step": True}},
        "relative_step takes the rate from the step alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name, parsed):
    sections, said = REFUSED[name]
    with pytest.raises(InputError) as caught:
        parsed(**sections)
    assert any(said in problem for problem in caught.value.problems)

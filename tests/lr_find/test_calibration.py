"""The scripts that measure best rates, on valleys whose bottom is known."""

import math

import calibrate_rates
import numpy as np
import pytest
import rate_rules


def record(best, model="one", optimizer="adamw"):
    """A cell whose evaluation loss is 2, and more by the square of the way from `best`.

    Before training it is 12. A hundred times the best rate is lost.
    """
    places = math.log2(best) + np.arange(-3, 4) + 0.3
    losses = [2 + (p - math.log2(best)) ** 2 for p in places]
    sweep = [{"rate": 2**p, "loss": x} for p, x in zip(places, losses, strict=True)]
    range_losses = [12.0] * 20 + [6.0] * 20
    return {
        "model": model,
        "method": "lora-16",
        "optimizer": optimizer,
        "first_loss": 12.0,
        "range": {
            **{"start": 1e-6, "stop": 1e-1, "steps": 40},
            **{"losses": range_losses, "before": [12.0] * 40},
        },
        "sweep": [*sweep, {"rate": 100 * best, "loss": None}],
    }


@pytest.mark.parametrize("guess", [-4, 0, 3, 9])
def test_rates_are_tried_until_the_best_has_two_worse_ones_on_either_side(guess):
    known = {}
    while (place := calibrate_rates.wanted(known, guess)) is not None:
        assert place not in known
        known[place] = math.inf if place > 3 else (place - 1.2) ** 2
    best = min(known, key=known.get)
    assert best == 1 and {best - 2, best - 1, best + 1, best + 2} <= set(known)
    assert len(known) <= calibrate_rates.MOST


def test_a_regret_is_the_share_of_what_the_best_rate_brings():
    cell = rate_rules.measured(record(3e-3))
    assert cell.best == pytest.approx(math.log(3e-3), abs=0.03)
    for factor in (1 / 3, 0.7, 1.0, 1.5, 2.5):
        expected = math.log2(factor) ** 2 / 10
        assert cell.regret(math.log(3e-3 * factor)) == pytest.approx(expected, abs=3e-3)
    assert cell.regret(math.log(0.3)) == pytest.approx(1.0)  # the run that was lost
    assert cell.regret(math.log(1e-9)) == cell.regret(cell.rates[0])


def test_factors_are_fitted_to_the_models_that_are_not_left_out():
    names = "one", "two", "three"
    cells = [rate_rules.measured(record(1e-3, name)) for name in names]
    cells.append(rate_rules.measured(record(1e-4, "one", "lion")))
    odd = rate_rules.measured(record(9e-3, "odd"))
    fit = rate_rules.shifted(rate_rules.constant, 0.0)
    found = rate_rules.left_out(fit, [*cells, odd])
    rates = [math.exp(rate) for rate in found]
    assert rates[4] == pytest.approx(1e-3, rel=0.1)  # nothing of its own 9e-3
    # No other model has lion: its rate is that of the method. The odd one pulls.
    assert 1e-3 < rates[0] < 3e-3 and rates[3] == pytest.approx(rates[0], rel=0.1)

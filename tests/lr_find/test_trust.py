"""When a range test says that its suggestion is not to be trusted."""

import numpy as np
import pytest

from jaxpeft.lr_find import trust
from jaxpeft.lr_find.curve import Curve

STEPS = 50
RATES = np.geomspace(1e-6, 1e-1, STEPS)


def falling(depth=3.0, noise=0.0, at=1e-3, top=5.0):
    """A curve that falls by `depth` around a rate and diverges behind 3e-2."""
    losses = top - depth / (1 + (RATES / at) ** -2)
    losses += np.random.default_rng(0).normal(0, noise, STEPS)
    end = int(np.argmax(RATES > 3e-2))
    losses[end] = 4 * top
    return Curve(RATES[: end + 1], losses[: end + 1], STEPS)


def test_a_clean_curve_is_trusted():
    assert trust.doubts(falling()) == []
    low, high = trust.interval(1e-3)
    assert low < 1e-3 < high


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (falling(depth=0.2), "the curve is flat: the loss came down by 3."),
        (falling(depth=1.0, noise=0.8), "the curve is noisy"),
        (falling(at=2e-6), "give a lower --start"),
        (Curve(RATES, falling().losses[0] - RATES, STEPS), "a higher --stop"),
    ],
    ids=["flat", "noisy", "from the first step on", "no divergence"],
)
def test_what_is_wrong_is_said(curve, said):
    assert any(said in doubt for doubt in trust.doubts(curve))


def test_few_steps_are_said():
    rates = RATES[::2]
    losses = np.append(np.linspace(5, 2, len(rates) - 1), 20.0)
    assert "25 steps are few" in trust.doubts(Curve(rates, losses, len(rates)))[0]


def test_what_batches_differ_by_is_no_noise_once_it_is_known():
    apart = np.random.default_rng(1).normal(0, 1.0, STEPS)
    clean = falling(depth=1.0)
    losses = clean.losses + apart[: len(clean.losses)]
    assert trust.doubts(Curve(clean.rates, losses, STEPS)) != []
    assert trust.doubts(Curve(clean.rates, losses, STEPS, 5.0 + apart)) == []

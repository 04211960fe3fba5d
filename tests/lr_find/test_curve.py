"""What a range test's curve says, on curves whose answers are known."""

import math

import numpy as np
import pytest
from PIL import Image

from jaxpeft.errors import InputError
from jaxpeft.lr_find import curve as range_curve
from jaxpeft.lr_find.curve import Curve

STEPS = 400


def valley(rates, steepest=1e-3, bottom=1e-2):
    """A loss that falls around `steepest`, from 5 to 2, and rises beyond `bottom`."""
    down = 1 / (1 + np.exp(-6 * np.log10(rates / steepest)))
    up = np.maximum(0, np.log10(rates / bottom))
    return 5 - 3 * down + 2 * up**2


@pytest.fixture(scope="module")
def curve():
    rates = np.geomspace(1e-6, 1e-1, STEPS)
    return Curve(rates, valley(rates), STEPS)


def test_averages_are_the_weighted_sums_of_their_definition():
    losses = np.random.default_rng(0).normal(3, 1, 60)
    keep = 1 - 10 / 60
    expected = [
        np.average(losses[: i + 1], weights=keep ** np.arange(i, -1, -1))
        for i in range(60)
    ]
    np.testing.assert_allclose(range_curve.averages(losses, 60), expected, rtol=1e-12)


def test_steps_with_nothing_to_learn_have_the_loss_beside_them():
    assert range_curve.filled([None, None, 3.0, None, 2.0, None]) == [
        *(3.0, 3.0, 3.0, 3.0, 2.0, 2.0)
    ]
    assert range_curve.filled([None, None]) == range_curve.filled([]) == []


def test_averages_of_a_constant_are_that_constant_from_the_first():
    np.testing.assert_allclose(range_curve.averages([2.5] * 20, 100), 2.5, rtol=1e-12)


def test_the_candidates_are_where_the_curve_falls_fastest_and_where_it_is_lowest(curve):
    found = range_curve.candidates(curve)
    # The averages lag behind by no more than the tenth of the range they look back.
    lag = (1e-1 / 1e-6) ** 0.1
    assert 1e-3 <= found["steepest"] <= 1e-3 * lag
    assert 1e-2 <= 10 * found["tenth"] <= 1e-2 * lag
    middle = math.sqrt(found["steepest"] * 10 * found["tenth"])
    assert found["between"] == pytest.approx(middle)


@pytest.mark.parametrize(
    ("at", "bottom", "end"),
    # The rise of 2 x^2 makes up for the fall of 3 at x = sqrt(1.5) decades.
    [(1e-3, 1e-2, 1e-1), (1e-4, 1e-3, 1e-3 * 10 ** math.sqrt(1.5))],
    ids=["to the end", "to where the fall is undone"],
)
def test_the_window_goes_from_half_of_the_fall(at, bottom, end):
    rates = np.geomspace(1e-6, 1e-1, STEPS)
    made = Curve(rates, valley(rates, at, bottom), STEPS)
    lag = (1e-1 / 1e-6) ** 0.1  # as above
    for averaged, times in (
        (False, range_curve.TIMES),
        (True, range_curve.TIMES_AVERAGED),
    ):
        found = range_curve.candidates(made, averaged)["window"] / times
        assert math.sqrt(at * end) * 0.99 <= found <= math.sqrt(at * end) * lag


def test_what_batches_differ_by_is_taken_off():
    rates, rng = np.geomspace(1e-6, 1e-1, 100), np.random.default_rng(2)
    harder = rng.normal(0, 0.5, 100)
    before = 5.0 + harder
    noisy = Curve(rates, valley(rates) + harder, 100, before)
    level = valley(rates) + harder.mean()
    np.testing.assert_allclose(noisy.level, level, rtol=1e-12)
    plain = range_curve.candidates(Curve(rates, level, 100))
    assert range_curve.candidates(noisy) == pytest.approx(plain)
    # A batch whose loss is not known keeps its own; none is made worse by it.
    before[3] = math.inf
    found = Curve(rates, noisy.losses, 100, before).level
    assert found[3] == noisy.losses[3] and np.isfinite(found).all()
    none = range_curve.levelled([1.0, 2.0], [math.nan, math.nan])
    np.testing.assert_array_equal(none, [1.0, 2.0])


def test_the_candidates_do_not_depend_on_how_many_steps_the_range_has(curve):
    rates = np.geomspace(1e-6, 1e-1, 100)
    short = range_curve.candidates(Curve(rates, valley(rates), 100))
    for rule, rate in range_curve.candidates(curve).items():
        assert short[rule] == pytest.approx(rate, rel=0.15), rule


def test_an_explosion_moves_no_candidate_but_the_end_of_the_window(curve):
    end = int(np.argmin(curve.smoothed)) + 5
    losses = np.append(curve.losses[:end], 60.0)
    exploded = Curve(curve.rates[: end + 1], losses, STEPS)
    assert exploded.diverged
    found, whole = range_curve.candidates(exploded), range_curve.candidates(curve)
    # The window ends there, and its middle moves by the root of that.
    whole["window"] *= math.sqrt(exploded.rates[-1] / curve.rates[-1])
    assert found == pytest.approx(whole, rel=0.03)


def test_noise_is_no_divergence_and_a_climb_is():
    noise = np.random.default_rng(1)
    flat = list(noise.normal(4.0, 0.4, 100))
    assert not any(range_curve.diverged(flat[:i], 100) for i in range(1, 101))
    climbing = [*flat, *np.linspace(4, 9, 15)]
    assert range_curve.diverged(climbing, 100)
    assert range_curve.diverged([4.0, math.nan], 100)
    assert range_curve.diverged([4.0, math.inf], 100)


@pytest.mark.parametrize(
    ("losses", "remedy"),
    [
        (np.full(100, 4.0), "a higher --stop"),
        (np.append(np.full(20, 4.0), 40.0), "a lower --start"),
        (np.array([np.nan]), "a lower --start"),
    ],
    ids=["flat", "diverging at once", "not finite at once"],
)
def test_nothing_is_suggested_where_nothing_fell(losses, remedy):
    rates = np.geomspace(1e-6, 1e-1, 100)[: len(losses)]
    with pytest.raises(InputError, match=remedy):
        range_curve.candidates(Curve(rates, losses, 100))


@pytest.mark.slow
def test_the_plot_is_a_picture(curve, tmp_path):
    rates = range_curve.candidates(curve)
    range_curve.plot(curve, rates, tmp_path / "curve.png", "a valley")
    with Image.open(tmp_path / "curve.png") as image:
        colors = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert image.size[0] > 600 and len(colors) > 50

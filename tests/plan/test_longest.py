"""`plan --longest`: lengths by a line, against a search through all of them."""

import pytest

from jaxpeft import plan
from jaxpeft.assembly import configuration
from jaxpeft.errors import InputError
from jaxpeft.plan import longest

ROOM, KEPT = 24e9, {"weights": 6_000_000_000, "batch": 1000}


class Sized:
    """Memory that grows by so many bytes a token, and a little faster further on."""

    def __init__(self, length, slope, bend=0.0, says=True):
        self.kept = KEPT
        self.size = int(6e9 + slope * length + bend * length**2)
        self.total = self.size if says else 0

    def fits(self, room):
        return self.size <= room


def by_trying_all(make):
    return max(n for n in range(1024, 2**20, 1024) if make(n).fits(ROOM))


@pytest.mark.parametrize("says", [True, False], ids=["says", "only refuses"])
@pytest.mark.parametrize("first", [2048, 2**19])
@pytest.mark.parametrize(("slope", "bend"), [(76e3, 0.0), (200e3, 0.05), (3e5, 1.0)])
def test_it_finds_what_trying_all_finds(slope, bend, first, says):
    def make(length):
        fits = Sized(length, slope, bend).fits(ROOM)
        return Sized(length, slope, bend, says or fits)

    tried = list(longest.longest(make, ROOM, first, 12))
    found = longest.best(tried, ROOM)
    true = by_trying_all(make)
    assert true / longest.NEAR**2 <= found.length <= true
    assert len({x.length for x in tried}) == len(tried)
    assert len(tried) <= (5 if says else 12)


def test_nothing_fits_where_the_weights_do_not():
    tried = list(longest.longest(lambda n: Sized(n, 1e9), ROOM, 2048, 6))
    assert longest.best(tried, ROOM) is None and tried[-1].length == 1024


def test_what_each_setting_adds_is_asked_once_and_only_where_it_is_not_set():
    given = ["model.remat=full", "model.offload=activations", "output_dir=nowhere"]
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", given)
    asked = []

    def trial(overrides, length):
        asked.append(overrides)
        if overrides == ("model.quantization=nf4",):
            raise InputError("its matrices cannot be quantized")
        return Sized(length, 50e3)

    found = longest.Tried(102400, Sized(102400, 100e3))
    gains = list(longest.gains(found, cfg, trial, ROOM))
    made = [("model.tile=4096",), ("model.offload=both",)]
    assert [one.overrides for one in gains] == made
    assert len(asked) == 3
    assert {one.length for one in gains} == {359424}  # 18e9 / 50e3, a multiple of 1024


def test_it_needs_a_target_and_looks_for_one_thing():
    with pytest.raises(InputError, match="--longest needs a target"):
        plan.parse(["--config", "x.yaml", "--longest"])
    both = ["--config", "x.yaml", "--target", "v5e-4", "--longest", "--search"]
    with pytest.raises(InputError, match="give one of them"):
        plan.parse(both)

"""The search for a faster step: what it asks the compiler, and what it chooses."""

import dataclasses
import math
from dataclasses import dataclass, replace

import pytest

from jaxpeft.errors import InputError
from jaxpeft.hardware import device_of
from jaxpeft.plan import search
from jaxpeft.plan.search import Candidate, Formula, Tried

GIB = 2**30
# Llama-3.1-8B with LoRA over 16 chips of v5e, 16 sequences of 2048 tokens.
ROUGH = Formula(
    device=device_of("TPU v5 lite"),
    count=16,
    weights=16 * GIB,
    sent=15 * GIB,
    read=15 * GIB,
    flops=1e15,
    sequences=16,
    length=2048,
    hidden=4096,
    wide=3 * 14336 + 48 * 128,
    layers=32,
)
ROOM = 15.75 * GIB


@dataclass(frozen=True)
class Said:
    total: int
    seconds: float

    @property
    def speed(self):
        return 1 / self.seconds

    def fits(self, room):
        return self.total <= room


class Compiler:
    """Says what the formula does, by other factors; notes what it was asked."""

    def __init__(self, seconds=2.0, kept=3.0):
        self.truth, self.asked = replace(ROUGH, seconds=seconds, kept=kept), []

    def __call__(self, one):
        self.asked.append(one)
        total = int(self.truth.memory(one))
        return Said(total, self.truth.time(one) if total <= ROOM else math.inf)


class Model:
    num_key_value_heads, num_attention_heads = 8, 32


def found(compiler, first, most=10):
    others = list(search.candidates(16, 16, Model))
    given = Tried(first, compiler(first))
    return [
        given,
        *search.search(given, others, ROUGH, ROOM, compiler, most),
    ]


def test_every_candidate_divides_what_it_must():
    found = list(search.candidates(16, 16, Model))
    assert len(found) == len(set(found))
    for one in found:
        assert one.data * one.fsdp * one.tensor == 16 and one.tensor <= 8
        assert 16 % one.parts == 0 and 16 // one.parts % (one.data * one.fsdp) == 0
    assert Candidate(1, 16, 1, 1, "none") in found
    assert Candidate(1, 2, 8, 8, "full") in found


def test_a_split_of_sequences_stays_and_counts_for_tokens_and_weights():
    given = Candidate(1, 4, 1, 1, "full", 4, 512)
    found = list(search.candidates(16, 2, Model, given=given))
    assert {one.tile for one in found} == {512}
    assert {one.data * one.fsdp * one.tensor for one in found} == {4}
    assert all("mesh.context=4" in one.overrides for one in found)
    split = next(one for one in found if (one.fsdp, one.tensor) == (2, 2))
    wide = dataclasses.replace(split, data=1, fsdp=8, context=1, tile=None)
    split = dataclasses.replace(split, tile=None)
    assert ROUGH.memory(split) == ROUGH.memory(wide)
    assert ROUGH.time(split) > ROUGH.time(wide)  # heads are exchanged


def test_long_sequences_may_be_split_and_taken_in_tiles():
    given = Candidate(1, 1, 1, 1, "full", 8)
    found = list(search.candidates(8, 1, Model, given=given, length=2**17, tiles=True))
    assert {(one.context, one.tensor) for one in found} == {
        (8, 1),
        (4, 2),
        (2, 4),
        (1, 8),
    }
    assert {one.tile for one in found} == {None, search.TILE}
    assert all(f"mesh.context={one.context}" in one.overrides for one in found)
    kept = list(search.candidates(8, 1, Model, given=given, length=2**17))
    assert {one.tile for one in kept} == {None}
    short = search.candidates(8, 8, Model, given=replace(given, context=1), length=2048)
    assert not any("mesh.context" in " ".join(one.overrides) for one in short)
    # Tiles take longer and keep less.
    long = replace(ROUGH, length=2**17, sequences=1)
    tiled = replace(given, tile=search.TILE)
    assert long.memory(tiled) < long.memory(given)
    assert long.time(tiled) > long.time(given)


def test_the_fastest_that_fits_is_found_without_asking_for_all():
    compiler = Compiler()
    tried = found(compiler, Candidate(1, 2, 8, 8, "full"))
    chosen = search.best(tried, ROOM)
    fitting = [
        one
        for one in search.candidates(16, 16, Model)
        if compiler.truth.memory(one) <= ROOM
    ]
    fastest = min(map(compiler.truth.time, fitting))
    assert chosen.trial.seconds <= fastest * search.GAIN
    assert chosen.trial.fits(ROOM) and len(compiler.asked) <= 5
    assert len(set(compiler.asked)) == len(compiler.asked)


def test_what_is_the_best_already_costs_no_compilation():
    compiler = Compiler()
    chosen = search.best(found(compiler, Candidate(1, 2, 8, 8, "full")), ROOM)
    again = Compiler()
    assert [one.candidate for one in found(again, chosen.candidate)] == [
        chosen.candidate
    ]


def test_what_does_not_fit_is_left_for_what_keeps_less():
    compiler = Compiler(kept=10.0)
    first = Candidate(16, 1, 1, 1, "none")  # all weights on every chip
    tried = found(compiler, first)
    assert not tried[0].trial.fits(ROOM)
    assert search.best(tried, ROOM).trial.fits(ROOM)


def test_one_that_is_slower_than_foretold_does_not_end_the_search():
    compiler = Compiler(kept=1.0)

    def trial(one):
        said = compiler(one)
        return replace(said, seconds=said.seconds * (3 if one.remat == "none" else 1))

    first = Candidate(1, 16, 1, 1, "full")
    given = Tried(first, compiler(first))
    others = list(search.candidates(16, 16, Model))
    tried = [given, *search.search(given, others, ROUGH, ROOM, trial, 8)]
    assert tried[1].candidate.remat == "none"
    assert search.best(tried, ROOM).candidate.remat == "dots"


def test_one_that_does_not_fit_does_not_end_the_search():
    compiler = Compiler()  # nothing fits that rematerializes nothing, on the same mesh
    tried = found(compiler, Candidate(1, 16, 1, 1, "full"))
    assert not tried[1].trial.fits(ROOM)
    assert search.best(tried, ROOM).trial.seconds < tried[0].trial.seconds


def test_a_number_of_compilations_is_kept_to():
    compiler = Compiler(kept=10.0)
    assert len(found(compiler, Candidate(16, 1, 1, 1, "none"), most=1)) == 2


def test_what_does_not_go_together_is_passed_over():
    compiler, refused = Compiler(), []

    def trial(one):
        if not refused:
            refused.append(one)
            raise InputError("mesh: does not divide")
        return compiler(one)

    first = Candidate(1, 2, 8, 8, "full")
    given = Tried(first, compiler(first))
    others = list(search.candidates(16, 16, Model))
    tried = list(search.search(given, others, ROUGH, ROOM, trial, 4))
    assert tried and refused[0] not in [one.candidate for one in tried]


def test_nothing_fits():
    given = Tried(Candidate(1, 16, 1, 1, "full"), Said(2**60, math.inf))
    assert search.best([given], ROOM) is None


@pytest.mark.parametrize("remat", search.REMATS)
def test_the_fitted_formula_gives_what_was_said(remat):
    one = Candidate(2, 4, 2, 2, remat)
    fitted = ROUGH.fitted(one, 7.5, 9 * GIB)
    assert fitted.time(one) == pytest.approx(7.5)
    assert fitted.memory(one) == pytest.approx(9 * GIB)
    # More parts keep less, and bring the weights together more often.
    more = replace(one, parts=4)
    assert fitted.memory(more) < fitted.memory(one)
    assert fitted.time(more) >= fitted.time(one)

"""The time that steps wait for their batches."""

import time

from jaxpeft.train.loop import _timed
from jaxpeft.train.waits import SURE, Waits


def test_waiting_is_said_once_where_it_is_much():
    said = []
    waits = Waits(said.append)
    waits.see(SURE / 2, SURE / 2)  # too early to say
    waits.see(0.0, 10 * SURE)
    assert said == []
    waits.see(SURE, SURE)
    waits.see(SURE, SURE)
    (line,) = said
    assert "wait for their batches 13% of the time" in line and "data.cache_dir" in line


def test_the_time_of_drawing_is_measured():
    def slow():
        yield 1
        time.sleep(0.05)
        yield 2

    (one, first), (two, second) = _timed(slow())
    assert (one, two) == (1, 2) and first < 0.05 <= second

"""Every optimizer against its reference over 200 steps; 1000 in scripts."""

import logging

import optimizer_parity
import pytest
from oracles import testbed

pytestmark = pytest.mark.slow

LOG = logging.getLogger(__name__)
ROWS = [row for row in optimizer_parity.rows() if not row.slow]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.loop}")
def test_the_course_is_the_reference_s(row):
    found = testbed.courses(row, 200)
    LOG.info("%s: %.1e max, %.1e rms of the movement", row.name, found.max, found.rms)
    assert found.moved > 1e-3
    bound = row.bound if row.bound_200 is None else row.bound_200
    assert found.within(bound, row.measure), found

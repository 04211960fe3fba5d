"""What counts as rounding of weights, and what as other weights."""

import numpy as np
import pytest

from jaxpeft.errors import NumericsError
from jaxpeft.export import forms, nearness

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(3, 2, (20, 500)).astype(np.float32)


@pytest.mark.parametrize("share", [1e-4, 0.03, 1.0])
def test_the_distance_is_the_noise_over_the_spread(share):
    noise = RANDOM.normal(0, 2 * share, LOGITS.shape)
    assert nearness.distance(LOGITS, LOGITS + noise) == pytest.approx(share, rel=0.05)


def test_models_of_nothing_in_common_are_apart_by_more_than_any_limit():
    other = RANDOM.normal(0, 2, LOGITS.shape)
    assert nearness.distance(LOGITS, other) > max(*forms.NEAR.values(), forms.IN_4_BITS)
    assert nearness.distance(LOGITS, LOGITS) == 0


def test_a_few_tokens_that_went_to_other_experts_are_no_other_model():
    after = LOGITS.copy()
    after[:5] += RANDOM.normal(0, 2, after[:5].shape)
    nearness.check(LOGITS, after, 1e-3, "float32")
    after[:15] += 1.0
    with pytest.raises(NumericsError, match=r"by up to .*Nothing of it is kept"):
        nearness.check(LOGITS, after, 1e-3, "float32")


def test_what_is_not_finite_is_named():
    lost = LOGITS.copy()
    lost[3, 4] = np.inf
    with pytest.raises(NumericsError, match="written in float16 are not finite"):
        nearness.check(LOGITS, lost, 0.1, "float16")
    with pytest.raises(NumericsError, match="trained model's own logits"):
        nearness.check(lost, LOGITS, 0.1, "float16")

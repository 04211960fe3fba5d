"""Early stopping beside transformers' own callback, on any series of losses."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EarlyStoppingCallback, TrainerControl, TrainingArguments

from jaxpeft.train.stopping import Stopping


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("run")),
        eval_strategy="steps",
        load_best_model_at_end=True,
        save_strategy="steps",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to="none",
    )


def theirs(arguments, losses, patience, threshold):
    """(step of the last evaluation, best loss) of a Trainer that sees these losses."""
    callback, control = EarlyStoppingCallback(patience, threshold), TrainerControl()
    state = SimpleNamespace(best_metric=None)
    for step, loss in enumerate(losses, 1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric = loss  # as the Trainer does, after the callbacks
        if control.should_training_stop:
            return step, state.best_metric
    return len(losses), state.best_metric


LOSSES = st.lists(st.sampled_from([1.0, 1.01, 1.1, 1.5, 2.0, 0.9]), min_size=1)


@given(LOSSES, st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.3]), st.data())
def test_it_stops_where_the_trainer_stops(arguments, losses, patience, threshold, data):
    stopping = Stopping(patience, threshold)
    cut = data.draw(st.integers(0, len(losses)), "a restart after so many")
    for step, loss in enumerate(losses, 1):
        stopping.observe(step, loss)
        if stopping.exhausted:
            break
        if step == cut:
            before, stopping = stopping, Stopping(patience, threshold)
            stopping.restore(before.position())
    last, best = theirs(arguments, losses, patience, threshold)
    assert (step, stopping.best) == (last, best)
    assert losses[stopping.best_step - 1] == best


def test_what_is_not_finite_improves_nothing():
    stopping = Stopping(patience=2)
    assert not stopping.observe(1, float("nan"))
    assert stopping.observe(2, 3.0) and stopping.best_step == 2
    assert not stopping.observe(3, float("nan"))
    assert not stopping.observe(4, float("inf"))
    assert stopping.exhausted
    assert "best loss is 3.0000, of step 2" in stopping.verdict(4)
    assert "no evaluation loss was finite" in Stopping().verdict(4)

"""What is said of curves whose trouble is known, and of those that have none."""

import json

import numpy as np
import pytest

from jaxpeft.diagnose import findings
from jaxpeft.diagnose.findings import Settings
from jaxpeft.train.loop import Moment
from jaxpeft.train.watch import Watch

STEPS = np.arange(10, 1001, 10)
PEAK = 3e-4
COSINE = PEAK * (1 + np.cos(np.pi * STEPS / 1000)) / 2
# Of batches that differ by a tenth, as those of 16 short conversations do.
NOISE = np.random.default_rng(0).normal(0, 0.1, len(STEPS))
FALLING = (1.2 + 2.8 * np.exp(-STEPS / 150)) * (1 + NOISE)
EVALUATED = np.arange(100, 1001, 100)
EVALUATIONS = 1.25 + 2.8 * np.exp(-EVALUATED / 150)


def run(losses=FALLING, evaluations=EVALUATIONS, rates=COSINE, norms=None):
    """The lines of a run with these columns."""
    norms = 0.6 * (1 + NOISE) if norms is None else norms
    lines = [
        {
            "step": int(step),
            "loss": float(loss),
            "learning_rate": float(rate),
            "grad_norm": float(norm),
        }
        for step, loss, rate, norm in zip(STEPS, losses, rates, norms, strict=True)
    ]
    lines += [
        {"step": int(step), "eval_loss": float(loss)}
        for step, loss in zip(EVALUATED, evaluations, strict=True)
    ]
    return sorted(lines, key=lambda line: line["step"])


def spiked():
    norms = 0.6 * (1 + NOISE)
    norms[[40, 55, 70]] = 30.0
    return norms


CONSTANT = np.full(len(STEPS), PEAK)
DIVERGING = np.where(STEPS < 500, FALLING, FALLING + (STEPS - 500) / 100)
SWINGING = FALLING * (1 + 0.5 * np.sign(np.sin(STEPS)))
OVERFITTED = np.where(
    EVALUATED < 400, EVALUATIONS, EVALUATIONS[3] + (EVALUATED - 400) / 1000
)
ZIGZAG = EVALUATIONS * (1 + 0.05 * (-1.0) ** np.arange(10))
FLAT_EVALUATIONS = 4 - EVALUATED / 20_000
STUCK = np.maximum(EVALUATIONS, EVALUATIONS[5])
TROUBLES = {
    "diverging": (run(DIVERGING), 490, "from 1.431", "learning_rate to 1e-04"),
    "overfitting": (
        run(evaluations=OVERFITTED),
        400,
        "to 2.0",
        "stop at step 400: training.early_stopping_patience=2",
    ),
    "oscillating": (run(SWINGING), 510, "swings by", "learning_rate to 1e-04"),
    "flat": (
        run(4 * (1 + NOISE), FLAT_EVALUATIONS),
        1000,
        "at first",
        "learning_rate to 3e-03",
    ),
    "gradient spikes": (run(norms=spiked()), 410, "30.0 at step", "max_grad_norm=1"),
    "always clipped": (
        run(norms=80 * (1 + NOISE)),
        1000,
        "81 times",
        "max_grad_norm to 2e+02",
    ),
    "rate at the end": (
        run(evaluations=STUCK, rates=CONSTANT),
        800,
        "100% of its highest",
        "schedule.name=cosine",
    ),
}


def test_a_jump_before_there_is_an_average_is_divergence():
    losses = np.where(STEPS > 10, 2 * FALLING[0], FALLING[0]) * (1 + NOISE / 10)
    evaluations = np.full(len(EVALUATED), 2 * FALLING[0])
    found = findings.diagnose(run(losses, evaluations), Settings())[0]
    assert found.kind == "diverging" and "at step 10 to" in found.evidence


def test_losses_that_rise_from_the_start_are_not_called_flat():
    losses = np.linspace(5, 8, len(STEPS))
    for evaluations in (np.linspace(4.7, 8.1, len(EVALUATED)), EVALUATIONS[::-1]):
        found = findings.diagnose(run(losses, evaluations), Settings())
        assert [finding.kind for finding in found] == ["diverging"]
        assert "lower" in found[0].remedy and "lr_find" in found[0].remedy
    steady = run(4 * (1 + NOISE), np.linspace(4.0, 4.6, len(EVALUATED)))
    assert "flat" not in [f.kind for f in findings.diagnose(steady, Settings())]


def test_where_the_best_is_kept_overfitting_does_not_ask_for_that():
    [found] = findings.diagnose(run(evaluations=OVERFITTED), Settings(keeps_best=True))
    assert "what step 400 trained is kept" in found.remedy


@pytest.mark.parametrize("kind", TROUBLES)
def test_each_trouble_is_found_alone_with_evidence_and_remedy(kind):
    lines, step, evidence, remedy = TROUBLES[kind]
    [found] = findings.diagnose(lines, Settings(max_grad_norm=1.0))
    assert found.kind == kind
    assert abs(found.step - step) <= 60
    assert evidence in found.evidence and remedy in found.remedy
    assert "\n" not in str(found)


def test_evaluations_that_turn_again_and_again_oscillate():
    found = findings.diagnose(run(evaluations=ZIGZAG), Settings())
    assert "oscillating" in [finding.kind for finding in found]


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_gives_no_finding(seed):
    noise = np.random.default_rng(seed).normal(0, 0.1, len(STEPS))
    losses = (1.2 + 2.8 * np.exp(-STEPS / 150)) * (1 + noise)
    lines = run(losses, norms=2 * (1 + noise))
    assert findings.diagnose(lines, Settings(max_grad_norm=1.0)) == []
    for seen in range(1, len(lines), 7):
        assert findings.diagnose(lines[:seen], Settings(1.0), ended=False) == []


def test_without_evaluations_flat_is_told_from_a_slow_fall():
    flat = run(4 * (1 + NOISE), FLAT_EVALUATIONS)
    training = [line for line in flat if "loss" in line]
    assert [f.kind for f in findings.diagnose(training, Settings())] == ["flat"]
    slow = [line for line in run(FALLING**0.2) if "loss" in line]
    assert findings.diagnose(slow, Settings()) == []


def test_a_constant_rate_is_no_trouble_where_the_loss_still_falls_or_is_averaged():
    assert findings.diagnose(run(rates=CONSTANT), Settings()) == []
    stuck = run(evaluations=STUCK, rates=CONSTANT)
    assert findings.diagnose(stuck, Settings(averages=True)) == []
    assert findings.diagnose(stuck, Settings(), ended=False) == []


def test_steps_that_were_not_finite_come_first():
    lines = run(DIVERGING)
    lines[20] = {**lines[20], "loss": None, "grad_norm": None}
    first, second = findings.diagnose(lines, Settings())
    assert first.kind == "not finite" and f"at step {lines[20]['step']}" in str(first)
    assert second.kind == "diverging"


def test_steps_with_nothing_to_learn_are_passed_over():
    lines = run()
    lines[20] = {**lines[20], "loss": None, "grad_norm": 0.0}
    assert findings.diagnose(lines, Settings()) == []


def test_an_overflow_that_lowers_the_scale_is_no_finding():
    """In float16; at a scale of 1 it is one, and so is a loss that is not finite."""
    lines = run()
    for scale, loss, kinds in [(2.0, 2.0, 0), (1.0, 2.0, 1), (2.0, None, 1)]:
        changes = {"grad_norm": None, "loss_scale": scale}
        loss = lines[20]["loss"] if loss else None
        others = [*lines[:20], {**lines[20], **changes, "loss": loss}, *lines[21:]]
        found = findings.diagnose(others, Settings())
        assert [one.kind for one in found] == kinds * ["not finite"]


def test_little_is_said_of_little():
    assert findings.diagnose([], Settings()) == []
    assert findings.diagnose(run(4 + 0 * NOISE)[:5], Settings()) == []


def test_a_watch_notes_each_kind_once_and_one_at_a_time(tmp_path):
    path, notes = tmp_path / "metrics.jsonl", []
    watch = Watch(path, Settings(), notes.append, every=100)
    seen = []
    with path.open("w") as file:
        for line in run(OVERTURNED, evaluations=OVERFITTED):
            file.write(json.dumps(line) + "\n")
            file.flush()
            watch(Moment(line["step"], {}, [0]))
            seen.append(len(notes))
    assert [note.split(": ")[1] for note in notes] == ["overfitting", "oscillating"]
    assert max(np.diff(seen)) == 1


# It overfits first, and swings later.
OVERTURNED = np.where(STEPS < 750, FALLING, SWINGING)


def test_a_rate_of_zero_is_told_with_one_that_works():
    still = run(FALLING[0] * (1 + NOISE), rates=np.zeros(len(STEPS)))
    (found,) = findings.diagnose(still, Settings(learning_rate=0.0))
    assert found.kind == "no rate" and "all 100 logged steps" in found.evidence
    assert found.remedy.startswith("set optimizer.learning_rate to 2e-04")
    # A single step that only warms up.
    (found,) = findings.diagnose(still[:1], Settings(learning_rate=1e-3))
    assert found.remedy.startswith("set schedule.warmup_steps to 0")
    assert not findings.diagnose(still[:1], Settings(learning_rate=1e-3), ended=False)
    lost = [{**line, "loss": None} for line in still]
    (found,) = findings.diagnose(lost, Settings(learning_rate=0.0))
    assert found.remedy == "use model.dtype float32"

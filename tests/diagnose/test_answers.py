"""What is said of runs that compare answers, and what is not."""

import numpy as np
import pytest

from jaxpeft.diagnose.findings import Settings, diagnose

STEPS = np.arange(1, 41)
SHRINKS = np.linspace(0, 1, len(STEPS))


def run(chosen=-100 - 2 * SHRINKS, margins=None, shares=None, kl=None, longer=None):
    """The lines of a run whose rejected answers become less likely."""
    noise = np.random.default_rng(0).normal(0, 0.3, len(STEPS))
    lines = []
    for i, step in enumerate(STEPS):
        line = {
            "step": int(step),
            "loss": float(0.7 - 0.2 * SHRINKS[i] + 0.3 * abs(noise[i])),
            "learning_rate": float(5e-6 * (1 - SHRINKS[i])),
            "grad_norm": 1.0,
            "rewards/margins": float(SHRINKS[i]),
            "logps/chosen": float(chosen[i]),
            "logps/rejected": float(-120 - 40 * SHRINKS[i]),
        }
        line |= {} if kl is None else {"kl": float(kl[i])}
        if longer is not None:
            rewarded, better = longer
            swing = float(noise[i]) / 3  # batches differ
            line["longer/rewarded"] = float(rewarded[i]) + swing
            line["longer/chosen"] = better - swing
        lines.append(line)
    margins = [0.1, 0.3, 0.5, 0.6, 0.65, 0.7] if margins is None else margins
    shares = [0.5, 0.6, 0.7, 0.72, 0.75, 0.76] if shares is None else shares
    for n, (margin, share) in enumerate(zip(margins, shares, strict=True)):
        at = {"step": 6 * (n + 1), "eval_loss": 0.7 - 0.02 * n}
        lines.append(
            at | {"eval_rewards/margins": margin, "eval_rewards/accuracies": share}
        )
    return sorted(lines, key=lambda line: line["step"])


def kinds(lines):
    return [finding.kind for finding in diagnose(lines, Settings())]


def test_a_healthy_run_gives_none():
    assert kinds(run()) == []  # though its loss differs from batch to batch


@pytest.mark.parametrize(
    "rewarded, chosen",
    [
        (0.5 + 0.4 * SHRINKS, 0.85),  # as often as it is the better one
        (0.9 + 0 * SHRINKS, 0.55),  # from the start on, by a model that is not at fault
        (0.5 + 0.1 * SHRINKS, 0.5),  # within what so few pairs say
    ],
)
def test_longer_answers_that_are_the_better_ones_are_no_finding(rewarded, chosen):
    assert kinds(run(longer=(rewarded, chosen))) == []


@pytest.mark.parametrize(
    "kind, changes, said",
    [
        ("both answers less likely", {"chosen": -100 - 50 * SHRINKS}, "sft_weight=0.2"),
        (
            "margin without accuracy",
            {
                "margins": [0.1, 0.3, 0.5, 1.0, 1.5, 2.0],
                "shares": [0.5, 0.6, 0.7, 0.7, 0.69, 0.7],
            },
            "early_stopping_patience",
        ),
        (
            "longer answers preferred",
            {"longer": (0.5 + 0.4 * SHRINKS, 0.55)},
            "objective.name=simpo",
        ),
        ("far from the reference", {"kl": 30 * SHRINKS}, "double objective.beta"),
    ],
)
def test_each_trouble_is_told_with_its_remedy(kind, changes, said):
    lines = run(**changes)
    assert kinds(lines) == [kind]
    (finding,) = diagnose(lines, Settings())
    assert said in finding.remedy and any(c.isdigit() for c in finding.evidence)

"""What the metrics of a run that compares answers say of its settings."""

from collections.abc import Sequence

import numpy as np

from jaxpeft.diagnose.finding import Finding, Line, Settings, number

FEWEST = 8  # logged steps of which anything is said
SHARE = 5  # an average is taken over a fifth of the lines, and over 3 at least
FELL = 0.1  # of an answer's log-probability: less is what better answers may cost
STANDS = 0.01  # a share of pairs that moves by less stands
GREW = 1.5  # the margin, from the middle of the evaluations on
LONGER = 0.15  # of pairs, by which the longer answer is rewarded more often than right
FAR = 10.0  # nats from the reference: answers of another model


def are_compared(lines: Sequence[Line]) -> bool:
    """Whether a run compares answers: batches of pairs differ by more than of tokens.

    Args:
        lines: of its training.
    """
    return any("rewards/margins" in line for line in lines)


def noticed(lines: Sequence[Line], settings: Settings) -> list[Finding]:
    """The findings of a run that compares answers; none of any other.

    Args:
        lines: those of `metrics.jsonl`.
        settings: what must be known of the configuration.
    """
    training = [line for line in lines if number(line, "loss") is not None]
    if len(training) < FEWEST or not are_compared(training):
        return []
    rate = max(number(line, "learning_rate") or 0.0 for line in training)
    found = (
        _both_fall(training, rate),
        _margin_alone(lines, rate),
        _longer(training, settings),
        _far(training),
    )
    return [finding for finding in found if finding is not None]


def _ends(lines: Sequence[Line], key: str) -> tuple[float, float] | None:
    """The means of a figure over the first and the last lines that have it."""
    values = [x for line in lines if (x := number(line, key)) is not None]
    width = max(3, len(values) // SHARE)
    if len(values) < 2 * width:
        return None
    return float(np.mean(values[:width])), float(np.mean(values[-width:]))


def _both_fall(training: Sequence[Line], rate: float) -> Finding | None:
    """Chosen answers become less likely along with the rejected ones."""
    sides = [_ends(training, f"logps/{side}") for side in ("chosen", "rejected")]
    if sides[0] is None or sides[1] is None:
        return None
    (first, last), (before, after) = sides[0], sides[1]
    if last > first - FELL * abs(first) or after > before - FELL * abs(before):
        return None
    return Finding(
        "both answers less likely",
        int(training[-1]["step"]),
        f"log-probabilities of chosen answers fell from {first:.1f} to {last:.1f}, "
        f"of rejected ones from {before:.1f} to {after:.1f} nats",
        "set objective.sft_weight=0.2, or lower optimizer.learning_rate to "
        f"{rate / 3:.0e}",
    )


def _margin_alone(lines: Sequence[Line], rate: float) -> Finding | None:
    """The margin grows on held-out pairs, and no more of them are told apart."""
    held = [line for line in lines if number(line, "eval_rewards/margins") is not None]
    half = len(held) // 2
    if len(held) < 4 or number(held[half], "eval_rewards/accuracies") is None:
        return None
    margins = [number(line, "eval_rewards/margins") or 0.0 for line in held]
    shares = [number(line, "eval_rewards/accuracies") or 0.0 for line in held]
    step, best = int(held[half]["step"]), max(shares[: half + 1])
    grew = margins[-1] > GREW * margins[half] > 0
    if not grew or max(shares[half + 1 :]) > best + STANDS:
        return None
    return Finding(
        "margin without accuracy",
        step,
        f"from step {step} on the margin of held-out pairs grew from "
        f"{margins[half]:.2f} to {margins[-1]:.2f}, while the share that is preferred "
        f"rightly went from {best:.0%} to {shares[-1]:.0%}",
        f"stop at step {step}: training.early_stopping_patience=2, or lower "
        f"optimizer.learning_rate to {rate / 3:.0e}",
    )


def _longer(training: Sequence[Line], settings: Settings) -> Finding | None:
    """More and more the longer answer is rewarded, not the one that was chosen."""
    ends, data = (_ends(training, f"longer/{x}") for x in ("rewarded", "chosen"))
    if ends is None or data is None:
        return None
    (first, last), chosen = ends, data[1]
    pairs = max(3, len(training) // SHARE) * settings.batch_size / 2
    # Three standard errors of a difference of two shares of so many pairs.
    enough = max(LONGER, 3 * (0.5 / pairs) ** 0.5)
    if last < chosen + enough or last < first + enough:
        return None
    return Finding(
        "longer answers preferred",
        int(training[-1]["step"]),
        f"the longer answer of a pair is rewarded more in {last:.0%} of pairs, at "
        f"first in {first:.0%}, and is the chosen one in {chosen:.0%}",
        "weigh means a token (objective.name=simpo, or loss_type=ipo of dpo), or add "
        "pairs whose better answer is the shorter one",
    )


def _far(training: Sequence[Line]) -> Finding | None:
    """The model is far from its reference, as kto measures it."""
    ends = _ends(training, "kl")
    if ends is None or ends[1] < FAR or ends[1] < 2 * ends[0]:
        return None
    return Finding(
        "far from the reference",
        int(training[-1]["step"]),
        f"the model's distance from the reference (kl) grew from {ends[0]:.1f} to "
        f"{ends[1]:.1f} nats an answer",
        "double objective.beta, or lower optimizer.learning_rate",
    )

"""How near the logits of what was written are to those of what was trained."""

import numpy as np

from jaxpeft.errors import NumericsError


def distance(before: np.ndarray, after: np.ndarray) -> float:
    """How far two models' logits are apart, of 1 for models of nothing in common.

    At each place it is the root mean square of the difference over that of the logits
    around their mean; of the places it is the median, since rounding may send a few
    tokens of a mixture to other experts.

    Args:
        before: (places, vocab) logits.
        after: likewise, of the other model.
    """
    spread = (before - before.mean(-1, keepdims=True)).std(-1)
    apart = np.sqrt(np.mean((after - before) ** 2, -1))
    return float(np.median(apart / np.maximum(spread, np.finfo(np.float32).tiny)))


def check(before: np.ndarray, after: np.ndarray, limit: float, dtype: str) -> None:
    """Checks that what was written computes what was trained.

    Args:
        before: (places, vocab) logits of what was trained.
        after: likewise of what was written.
        limit: the largest `distance` that the way of storing explains.
        dtype: of the weights that were written, for the message.

    Raises:
        NumericsError: they are further apart, or not finite.
    """
    if not np.isfinite(before).all():
        raise NumericsError(
            "the trained model's own logits are not finite: train it again from an "
            "earlier checkpoint, with a lower optimizer.learning_rate"
        )
    if not np.isfinite(after).all():
        raise NumericsError(
            f"the logits of the weights written in {dtype} are not finite, and nothing "
            "of them is kept; choose --dtype bfloat16 or float32"
        )
    apart = distance(before, after)
    if apart > limit:
        most = np.abs(after - before).max()
        raise NumericsError(
            f"what was written in {dtype} computes other logits than what was trained: "
            f"by up to {most:.2g}, in the median place by {apart:.1%} of their spread, "
            f"where {limit:.1%} could be rounding. Nothing of it is kept; choose "
            "--dtype float32, or --to peft"
        )


def told(what: str, before: np.ndarray, after: np.ndarray) -> str:
    """A line about how the logits changed.

    Args:
        what: how the line begins, such as "merging changed".
        before: (places, vocab) logits of what was trained.
        after: likewise of what was written.
    """
    changes = np.abs(after - before)
    same = np.mean(before.argmax(-1) == after.argmax(-1))
    return (
        f"{what} the logits by at most {changes.max():.2g}, on average "
        f"{changes.mean():.2g}; they reach {np.abs(before).max():.3g}, and the most "
        f"likely token is the same in {same:.0%} of {len(before)} places"
    )

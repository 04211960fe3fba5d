"""Accuracy of multiple choice: the most probable of the possible answers."""

from jaxpeft.errors import InputError, suggest
from jaxpeft.metrics.metric import Metric


def choice_accuracy(choices: tuple[str, ...] = ()) -> Metric:
    """The share of questions whose most probable choice is the reference, from 0 to 1.

    Nothing is generated: a choice is as probable as its tokens are, one after another,
    where the answer begins. Their log-probabilities are added up, as `acc` of
    EleutherAI's harness adds them, so that of two choices one of which begins the other
    the shorter wins.

    Args:
        choices: the possible answers, such as [A, B, C, D]; empty: all the different
            answers in the evaluation data.

    Raises:
        InputError: one of the choices is empty.
    """
    known = tuple(choices)
    if "" in known:
        raise InputError(
            "evaluation.metrics: choice_accuracy: found an empty choice; remove it"
        )

    def wrong(reference: str) -> str:
        if not known or reference.strip() in known:
            return ""
        return f"the reference {reference.strip()!r} is no choice" + suggest(
            reference.strip(), known
        )

    def each(answer: str, reference: str) -> float:
        return float(answer.strip() == reference.strip())

    return Metric(each, wrong=wrong, choices=known)

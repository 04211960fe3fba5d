"""What a metric is: a score of answers beside the answers that they should be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Score = Callable[[str, str], float]


def nothing_wrong(reference: str) -> str:
    """No complaint: what a metric that takes any reference says of it.

    Args:
        reference: which is not looked at.
    """
    return ""


@dataclass(frozen=True)
class Metric:
    """A score of answers beside their references, the higher the better.

    Attributes:
        each: (answer, reference) -> the score of one answer.
        of_all: (answers, references) -> the score of a data set; None: the mean of
            `each`.
        wrong: what is wrong with a reference, in a sentence without its place; empty if
            nothing is.
        choices: what the answer is chosen from, by its probability; empty: from all
            references of the data. None: the answer is generated.
    """

    each: Score
    of_all: Callable[[Sequence[str], Sequence[str]], float] | None = None
    wrong: Callable[[str], str] = nothing_wrong
    choices: tuple[str, ...] | None = None

    def figure(
        self,
        scores: Sequence[float],
        answers: Sequence[str],
        references: Sequence[str],
    ) -> float:
        """The score of a data set.

        Args:
            scores: what `each` gave for every answer; one or more.
            answers: the answers.
            references: of each.
        """
        if self.of_all is not None:
            return self.of_all(answers, references)
        return math.fsum(scores) / len(scores)

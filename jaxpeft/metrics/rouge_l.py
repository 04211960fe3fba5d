"""ROUGE-L: the longest common subsequence of words (Lin, 2004)."""

import re
from collections.abc import Hashable, Sequence

from jaxpeft.metrics.metric import Metric

OTHER = re.compile(r"[^a-z0-9]+")


def rouge_l() -> Metric:
    """The mean F1 of the longest common subsequence of words, from 0 to 1.

    It is `rougeL` of Google's `rouge_score`, without a stemmer: words are the runs of
    ASCII letters and digits, in lower case.
    """
    return Metric(f1)


def f1(answer: str, reference: str) -> float:
    """The F1 of the longest common subsequence of two texts' words.

    Args:
        answer: what was answered.
        reference: what should have been.
    """
    ours, theirs = words(answer), words(reference)
    common = common_length(ours, theirs)
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def words(text: str) -> list[str]:
    """The words of a text, as `rouge_score` has them.

    Args:
        text: any text.
    """
    return OTHER.sub(" ", text.lower()).split()


def common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence.

    A row of the usual table is an integer, whose bit at a place is 0 where the length
    grows (Hyyrö, 2004), so that long answers cost no more than short ones.

    Args:
        one: a sequence.
        other: a sequence.
    """
    places: dict[Hashable, int] = {}
    for place, item in enumerate(one):
        places[item] = places.get(item, 0) | 1 << place
    whole = (1 << len(one)) - 1
    row = whole
    for item in other:
        met = row & places.get(item, 0)
        row = (row + met | row - met) & whole
    return len(one) - row.bit_count()

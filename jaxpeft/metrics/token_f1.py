"""Token F1: the words that answer and reference share (Rajpurkar et al., 2016)."""

import re
import string
from collections import Counter

from jaxpeft.metrics.metric import Metric

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def token_f1() -> Metric:
    """The mean F1 over the words that answer and reference share, from 0 to 1.

    It is that of SQuAD's evaluation script (2.0, whose empty answers equal empty
    references): without case, ASCII punctuation and articles.
    """
    return Metric(f1)


def f1(answer: str, reference: str) -> float:
    """The F1 of two texts' words, however they are ordered.

    Args:
        answer: what was answered.
        reference: what should have been.
    """
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def words(text: str) -> list[str]:
    """The words of a text, as SQuAD's script has them.

    Args:
        text: any text.
    """
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()

"""chrF: n-grams of characters that answer and reference share (Popović, 2015)."""

from jaxpeft.metrics import sacre
from jaxpeft.metrics.metric import Metric


def chrf(word_order: int = 0) -> Metric:
    """sacrebleu's chrF of the whole data set, from 0 to 100.

    Args:
        word_order: the longest n-gram of words that counts, too; 2 is chrF++.

    Raises:
        InputError: where sacrebleu is not installed.
    """
    return sacre.metric(sacre.scorer("CHRF", word_order=word_order))

"""BLEU: n-grams that answer and reference share (Papineni et al., 2002)."""

from typing import Literal

from jaxpeft.metrics import sacre
from jaxpeft.metrics.metric import Metric


def bleu(
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a",
    lowercase: bool = False,
) -> Metric:
    """sacrebleu's BLEU of the whole data set, from 0 to 100.

    The score of one answer alone is its sentence BLEU, whose n-grams are as long as the
    answer has them.

    Args:
        tokenize: how sacrebleu splits texts; "zh" for Chinese.
        lowercase: whether upper and lower case are alike.

    Raises:
        InputError: where sacrebleu is not installed.
    """
    settings = {"tokenize": tokenize, "lowercase": lowercase}
    whole = sacre.metric(sacre.scorer("BLEU", **settings))
    alone = sacre.metric(sacre.scorer("BLEU", effective_order=True, **settings))
    return Metric(alone.each, whole.of_all)

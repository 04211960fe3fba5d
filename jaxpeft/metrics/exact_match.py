"""Exact match: the share of answers that are the reference, or whose number is."""

import re
import string
from typing import Literal

from jaxpeft.metrics.metric import Metric

Extract = Literal["none", "gsm8k", "last_number"]

MARKED = re.compile(r"#### (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[0-9][0-9,]*(?:\.[0-9]+)?")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(
    extract: Extract = "none",
    ignore_case: bool = False,
    ignore_punctuation: bool = False,
) -> Metric:
    """The share of answers that equal the reference, from 0 to 1.

    White space at both ends does not count. With `extract: gsm8k` the number behind
    `####` is compared in place of the whole, without its commas, as OpenAI's
    `grade_school_math` does; an answer without one is wrong. With `last_number` the
    last number is, or that behind `####`, so that a model that was never taught the
    mark can be right.

    Args:
        extract: what of a text is compared.
        ignore_case: whether upper and lower case are alike.
        ignore_punctuation: whether ASCII punctuation is left out.
    """

    def compared(text: str) -> str | None:
        if extract != "none":
            return number(text, extract)
        text = text.lower() if ignore_case else text
        text = text.translate(PUNCTUATION) if ignore_punctuation else text
        return text.strip()

    def each(answer: str, reference: str) -> float:
        return float(compared(answer) == compared(reference))

    def wrong(reference: str) -> str:
        if compared(reference) is not None:
            return ""
        found = "'#### ' and a number" if extract == "gsm8k" else "number"
        return (
            f"the reference {reference[-60:]!r} holds no {found}; set extract of "
            "exact_match to another of none, gsm8k and last_number, or give other data"
        )

    return Metric(each, wrong=wrong)


def number(text: str, extract: Extract) -> str | None:
    """The number that an answer comes to, without commas; None where there is none.

    Args:
        text: the answer.
        extract: "gsm8k": the first behind `####`; "last_number": that one, or else the
            last of all.
    """
    if marked := MARKED.search(text):
        return marked[1].strip().replace(",", "")
    if extract == "gsm8k":
        return None
    found = NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None

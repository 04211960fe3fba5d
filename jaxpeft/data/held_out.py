"""A share of the training records set aside to evaluate on."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jaxpeft.data.conversation import Conversation, Sample
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError

Parsed = tuple[Row, Sample]

_NEAR = 0.1  # of what was asked for


def divided(
    parsed: Sequence[Parsed], share: float
) -> tuple[list[Parsed], list[Parsed]]:
    """The records to train on and those held out, divided by their content.

    Records that become the same conversation, document or pair of them are on the same
    side, whatever their other columns say. Held out are those whose hashes are the
    lowest, as many as fit into `share` of all, rounded up: so a record is on one side
    whatever the seed, the order of the file or the name of it. Where nothing fits, the
    smallest group of equal records is held out.

    Args:
        parsed: all records, and what each becomes.
        share: the part of the records to hold out, from 0 to 1.

    Returns:
        The records to train on and those held out, each in their order.

    Raises:
        InputError: none would be left to train on.
    """
    wanted = math.ceil(share * len(parsed))
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number, (_, sample) in enumerate(parsed):
        groups[_hash(_content(sample))].append(number)
    ranks = {key: min(_hash(parsed[n][0].value) for n in groups[key]) for key in groups}
    ranked = sorted(groups, key=lambda key: ranks[key])
    held: set[int] = set()
    for key in ranked:
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
    if not held and ranked:
        held.update(groups[min(ranked, key=lambda key: (len(groups[key]), ranks[key]))])
    if len(held) == len(parsed):
        raise InputError(
            f"data.eval_split: {share:g} of {len(parsed)} records leaves none to train "
            "on; give more records, or data.eval in its place"
        )
    sides: tuple[list[Parsed], list[Parsed]] = ([], [])
    for number, one in enumerate(parsed):
        sides[number in held].append(one)
    return sides


def remark(path: str, held: int, records: int, share: float) -> list[str]:
    """A line where the share that is held out is not near the one asked for.

    Args:
        path: the source.
        held: how many of its records are held out.
        records: how many it has.
        share: the part of them asked for.
    """
    wanted = math.ceil(share * records)
    if abs(held - wanted) <= max(1, _NEAR * wanted):
        return []
    return [
        f"{path}: data.eval_split {share:g} would be {wanted:,} of {records:,} "
        f"records, but {held:,} are held out, since equal records stay on one side; "
        "delete the repeated ones, or give data.eval in its place"
    ]


def _content(sample: Sample) -> Any:
    contents = [_content_of(item) for item in sample.items]
    return contents if len(contents) > 1 else contents[0]


def _content_of(item: Conversation | str) -> Any:
    return item if isinstance(item, str) else [item.messages, item.tools]


def _hash(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    content = text.encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()

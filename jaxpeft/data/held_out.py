"""A share of the training records set aside to evaluate on."""

import hashlib
import json
import math
from collections.abc import Sequence

from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError


def divided(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """The rows to train on and the rows held out, divided by their content.

    Held out are the records whose hashes are the lowest, `share` of them rounded up.
    So a record is on one side whatever the seed, the order of the file or the name of
    it, and equal ones are on the same side.

    Args:
        rows: all records.
        share: the part of the records to hold out, from 0 to 1.

    Returns:
        The rows to train on and the rows held out, each in their order.

    Raises:
        InputError: none would be left to train on.
    """
    hashes = [_hash(row) for row in rows]
    lowest = sorted(hashes)[: math.ceil(share * len(rows))]
    held = [bool(lowest) and value <= lowest[-1] for value in hashes]
    if all(held):
        raise InputError(
            f"data.eval_split: {share:g} of {len(rows)} records leaves none to train "
            "on; give more records, or data.eval in its place"
        )
    train = [row for row, out in zip(rows, held) if not out]
    return train, [row for row, out in zip(rows, held) if out]


def _hash(row: Row) -> bytes:
    text = json.dumps(row.value, sort_keys=True, default=str, ensure_ascii=False)
    content = text.encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()

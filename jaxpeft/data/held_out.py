"""A share of the training records set aside to evaluate on."""

import hashlib
import json
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from jaxpeft.data.conversation import Conversation, Sample
from jaxpeft.data.sources import Row
from jaxpeft.errors import InputError

_WRITER = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False)
_NEAR = 0.1  # of what was asked for


def hashed(row: Row, sample: Sample) -> bytes:
    """What `held_out` wants of a record: 16 bytes of its content and 16 of the whole.

    Args:
        row: the record.
        sample: what it becomes.
    """
    return _hash(_content(sample)) + _hash(row.value)


def held_out(
    hashes: Shaped[np.ndarray, " records"], share: float
) -> Bool[np.ndarray, " records"]:
    """Which records are evaluated on, and not trained on: decided by their content.

    Records that become the same conversation, document or pair of them are on the same
    side, whatever their other columns say. Held out are those whose hashes are the
    lowest, as many as fit into `share` of all, rounded up: so a record is on one side
    whatever the seed, the order of the file or the name of it. Where nothing fits, the
    smallest group of equal records is held out.

    Args:
        hashes: of all records, 32 bytes each, see `hashed`.
        share: the part of the records to hold out, from 0 to 1.

    Raises:
        InputError: none would be left to train on.
    """
    count = len(hashes)
    wanted = math.ceil(share * count)
    # As numbers of 64 bits that sort as the bytes do: content, content, row, row.
    words = np.frombuffer(hashes.tobytes(), ">u8").reshape(count, 4).astype("u8")
    # Equal contents side by side, the lowest whole record of each first.
    order = np.lexsort(words.T[::-1])
    content = words[order, :2]
    is_first = np.ones(count, bool)
    is_first[1:] = (content[1:] != content[:-1]).any(axis=1)
    firsts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(firsts, count))
    ranked = np.lexsort(words[order[firsts], 2:].T[::-1])
    taken, held = [], 0
    for group, size in zip(ranked.tolist(), sizes[ranked].tolist()):
        if held + size <= wanted:
            taken.append(group)
            held += size
        if held == wanted:
            break
    if not taken and count:
        smallest = sizes[ranked].argmin()
        taken, held = [int(ranked[smallest])], int(sizes[ranked[smallest]])
    if held == count:
        raise InputError(
            f"data.eval_split: {share:g} of {count} records leaves none to train "
            "on; give more records, or data.eval in its place"
        )
    is_held = np.zeros(len(firsts), bool)
    is_held[taken] = True
    sides = np.zeros(count, bool)
    sides[order] = np.repeat(is_held, sizes)
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
    text = _WRITER.encode(value)
    content = text.encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()

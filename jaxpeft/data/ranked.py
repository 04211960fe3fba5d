"""Pairs of a better and a worse answer, and by how much the one is better."""

import functools
import math
from dataclasses import replace

from jaxpeft.data.columns import Fields, Record, column_of, value_of
from jaxpeft.data.conversation import Sample
from jaxpeft.data.preference import PAIRS
from jaxpeft.errors import InputError

MARGIN = "margin"


def _read(record: Record, fields: Fields, *, of: str) -> Sample:
    own = {name: column for name, column in fields.items() if name != MARGIN}
    sample = Sample.of(PAIRS.readers[of](record, own))
    return replace(sample, columns={MARGIN: _margin(record, fields)})


def _margin(record: Record, fields: Fields) -> float:
    value = value_of(record, fields, MARGIN, required=False)
    if value is None or value == "":
        return 0.0
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"column {column_of(fields, MARGIN)!r} says by how much the chosen answer "
            f"is better, and has to be a number; it is {type(value).__name__} "
            f"{str(value)[:40]!r}; to leave it unread, fields: {{margin: null}}"
        )
    return number


# What `objective: reward` makes of records: those of preference tuning, and `margin`.
RANKED = replace(
    PAIRS,
    name="ranked",
    readers={of: functools.partial(_read, of=of) for of in PAIRS.readers},
    fields={of: (*names, MARGIN) for of, names in PAIRS.fields.items()},
    columns={MARGIN: "float32"},
)

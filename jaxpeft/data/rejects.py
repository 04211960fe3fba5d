"""The rows of a source that cannot be used: told together, or left out and listed."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxpeft.errors import InputError

# More than these are seldom read, and one mistake often spoils every row.
_SHOWN = 5
# So many are listed with their places; others are counted.
_LISTED = 100_000
# From which share of the rows on a remark says why they are left out.
_MANY = 0.01
_NAMED = 3
_IN_BRACKETS = re.compile(r" ?\([^()]*\)")


class Skipped(NamedTuple):
    """A row that is left out.

    Attributes:
        place: where it stands, such as `train.jsonl:3 (row 3)`.
        reason: what is wrong with it.
    """

    place: str
    reason: str


class Rejects:
    """Collects the rows of one source that cannot be used.

    Args:
        path: the file or folder, for messages.
        skip: leave them out; otherwise they end the reading, once all are known.

    Attributes:
        skip: whether they are left out.
        count: how many there are so far.
        rows: how many rows were read at the last `settle`, these among them.
        problems: what is wrong with the first of them, each with its place.
        listed: the first of them, one by one.
        reasons: how many there are for each reason.
    """

    def __init__(self, path: str, *, skip: bool = False):
        self.path, self.skip = path, skip
        self.count = self.rows = 0
        self.problems: list[str] = []
        self.listed: list[Skipped] = []
        self.reasons: Counter[str] = Counter()

    def add(self, error: InputError) -> None:
        """Takes in a row that cannot be used.

        Args:
            error: what is wrong with it, with its place.
        """
        place, _, reason = error.problems[0].partition(": ")
        more = [problem.removeprefix(f"{place}: ") for problem in error.problems[1:]]
        self.count += 1
        self.reasons[_in_short(reason)] += 1
        if len(self.listed) < _LISTED:
            self.listed.append(Skipped(place, "; ".join([reason, *more])))
        if len(self.problems) < _SHOWN:
            self.problems += error.problems

    def told(self) -> dict[str, Any]:
        """All that is known of them, as JSON can hold it; `take` takes it in."""
        return {
            "count": self.count,
            "rows": self.rows,
            "problems": self.problems,
            "listed": [list(one) for one in self.listed],
            "reasons": dict(self.reasons),
        }

    def take(self, told: Mapping[str, Any]) -> None:
        """Takes in what another process or an earlier one knew of later rows.

        Args:
            told: what `told` gave there.
        """
        self.count += told["count"]
        self.rows += told["rows"]
        if len(self.problems) < _SHOWN:
            self.problems += told["problems"]
        left = _LISTED - len(self.listed)
        self.listed += [Skipped(*one) for one in told["listed"][:left]]
        self.reasons.update(told["reasons"])

    def settle(self, rows: int) -> None:
        """Ends a stage of the reading.

        Args:
            rows: how many were read, the rejected ones among them.

        Raises:
            InputError: some of them cannot be used and are not to be left out, or no
                other is left.
        """
        self.rows = max(self.rows, rows)
        if not self.count or (self.skip and self.count < rows):
            return
        told = list(self.problems)
        hidden = "; the first of them are named above" if self.count > _SHOWN else ""
        if 1 < rows == self.count:
            told.append(f"{self.path}: none of the {rows:,} rows can be used{hidden}")
        elif rows > 1:
            told.append(
                f"{self.path}: {self.count:,} of {rows:,} rows cannot be used{hidden}; "
                "correct them, or leave them out with data.on_error: skip"
            )
        raise InputError(*told)

    def remark(self, examples: int) -> list[str]:
        """A line about the rows that were left out, if there are any.

        Where they are more than a hundredth of all it says for which reasons.

        Args:
            examples: how many the others make.
        """
        if not self.count:
            return []
        is_one = self.count == 1
        rows = "1 row is" if is_one else f"{self.count:,} rows are"
        why = "the first"
        share = self.count / max(self.rows, self.count)
        if share > _MANY and not is_one:
            rows = f"{self.count:,} rows ({share:.1%} of all) are"
            named = self.reasons.most_common(_NAMED)
            some = [f"{number:,} times {reason}" for reason, number in named]
            if rest := self.count - sum(number for _, number in named):
                some.append(f"{rest:,} times something else")
            why = f"{', '.join(some)}; the first"
        return [
            f"{self.path}: {rows} left out that cannot be used (data.on_error: skip), "
            f"{examples:,} examples remain; {why}: {self.problems[0]}"
        ]

    def skipped(self) -> tuple[Skipped, ...]:
        """The rows that were left out, and a last line for those that are counted."""
        rest = self.count - len(self.listed)
        more = [Skipped(self.path, f"{rest:,} more rows, not listed")] if rest else []
        return (*self.listed, *more)


def _in_short(reason: str) -> str:
    """What reasons have in common that differ in values: they are counted together."""
    return _IN_BRACKETS.sub("", reason.split(";")[0])[:100]

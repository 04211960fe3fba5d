"""The rows of a source that cannot be used: told together, or left out."""

from jaxpeft.errors import InputError

# More than these are seldom read, and one mistake often spoils every row.
_SHOWN = 5


class Rejects:
    """Collects the rows of one source that cannot be used.

    Args:
        path: the file or folder, for messages.
        skip: leave them out; otherwise they end the reading, once all are known.

    Attributes:
        skip: whether they are left out.
        count: how many there are so far.
        problems: what is wrong with the first of them, each with its place.
    """

    def __init__(self, path: str, *, skip: bool = False):
        self.path, self.skip = path, skip
        self.count = 0
        self.problems: list[str] = []

    def add(self, error: InputError) -> None:
        """Takes in a row that cannot be used.

        Args:
            error: what is wrong with it, with its place.
        """
        self.count += 1
        if len(self.problems) < _SHOWN:
            self.problems += error.problems

    def settle(self, rows: int) -> None:
        """Ends a stage of the reading.

        Args:
            rows: how many were read, the rejected ones among them.

        Raises:
            InputError: some of them cannot be used and are not to be left out, or no
                other is left.
        """
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

        Args:
            examples: how many the others make.
        """
        if not self.count:
            return []
        is_one = self.count == 1
        rows = "1 row is" if is_one else f"{self.count:,} rows are"
        return [
            f"{self.path}: {rows} left out that cannot be used (data.on_error: skip), "
            f"{examples:,} examples remain; the first: {self.problems[0]}"
        ]

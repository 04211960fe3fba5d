"""Files of one JSON value a line, by blocks of whole lines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from jaxpeft.data.json_text import after_blank, line_value, raw_value
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources.opened import decoded, opened
from jaxpeft.data.sources.part import SIZE, Row, row, usable
from jaxpeft.errors import InputError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Some lines of a file.

    Attributes:
        path: the file.
        block: the lines.
        line: the number of the first.
        number: the number of its first row.
        count: the lines that are not blank.
        done: the share of the file that is read with them.
    """

    path: str
    block: bytes
    line: int
    number: int
    count: int
    done: float

    def rows(self, rejects: Rejects) -> list[Row]:
        """The rows; `rejects` is given the lines that are no records.

        Raises:
            InputError: they are not UTF-8, or the file is JSON of another layout.
        """
        return [item for item in self.each(rejects) if item is not None]

    def each(self, rejects: Rejects) -> list[Row | None]:
        """The rows, None for the lines that are no records.

        Raises:
            InputError: as of `rows`.
        """
        rows: list[Row | None] = []
        text = decoded(self.block, self.path, self.line)
        # Not splitlines(): U+2028 and its like stand inside strings.
        for line, content in enumerate(text.split("\n"), self.line):
            if not content.strip():
                continue
            number = self.number + len(rows)
            try:
                value = line_value(content, self.path, line)
            except InputError as error:
                if number == 1 and "\n" in text.strip() and _is_json(text):
                    raise InputError(
                        f"{self.path}:{line}: a record has to stand on one line here; "
                        "write each on a line of its own, or name the file .json"
                    ) from error
                item: Row | InputError = error
            else:
                if number == 1 and _are_records(value):
                    raise InputError(
                        f"{self.path}:{line}: this line is a list of {len(value):,} "
                        "records; write each on a line of its own, or name the file "
                        ".json"
                    )
                item = row(f"{self.path}:{line} (row {number})", value)
            rows.append(usable(item, rejects))
        return rows

    def first(self, count: int) -> "Lines":
        """The part that has the first `count` records alone."""
        lines, left = self.block.split(b"\n"), count
        for number, line in enumerate(lines):
            left -= not _is_blank(line)
            if not left:
                lines = lines[: number + 1]
                break
        return replace(self, block=b"\n".join(lines), count=count)


def read(path: str) -> Iterator[Lines]:
    """The parts of a file that has one JSON value a line.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read.
    """
    line = number = 1
    with opened(path) as source:
        while block := source.file.read(SIZE):
            block += source.file.readline()
            if line == 1:
                block = block.removeprefix(_BOM)
            count = sum(not _is_blank(one) for one in block.split(b"\n"))
            yield Lines(path, block, line, number, count, source.done())
            line += block.count(b"\n")
            number += count


def _is_blank(line: bytes) -> bool:
    stripped = line.strip()
    # Characters that are no space in bytes and blank all the same: str has more.
    return not stripped or (
        stripped[0] not in b'{["' and not stripped.decode(errors="replace").strip()
    )


def _are_records(value: Any) -> bool:
    """Whether a value is a list of objects, as a .json file holds them."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_json(text: str) -> bool:
    """Whether a text begins with an object or a list over several lines."""
    begin = after_blank(text)
    try:
        raw_value(text, begin)
    except RecursionError:
        return False
    except ValueError:
        if text[begin] != "[" or len(text) < SIZE:
            return False
        try:  # of a longer list this is the beginning
            raw_value(text, after_blank(text, begin + 1))
        except (ValueError, RecursionError):
            return False
    return True

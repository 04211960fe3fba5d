"""A configuration in translation: their keys, and what has become of each."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpeft.config.wording import shown
from jaxpeft.errors import InputError, near, suggest

ASKS_NOTHING = "asks for nothing"


def _same(value: Any) -> Any:
    return value


def truth(value: Any) -> Any:
    """`yes`, `no`, `on` and `off` as YAML 1.1 reads them; all else as it is."""
    return _TRUTH.get(value.lower(), value) if isinstance(value, str) else value


_TRUTH = {"yes": True, "on": True, "no": False, "off": False}


@dataclass(frozen=True)
class To:
    """A key that we have too.

    Attributes:
        key: our dotted key.
        convert: makes our value of theirs.
        remark: what is not quite the same; empty: nothing.
        off: the values at which it asks for nothing.
    """

    key: str
    convert: Callable[[Any], Any] = _same
    remark: str = ""
    off: tuple[Any, ...] = (None,)


@dataclass(frozen=True)
class Idle:
    """A key that says nothing here.

    Attributes:
        why: the reason.
    """

    why: str


@dataclass(frozen=True)
class Without:
    """A key without equivalent.

    Attributes:
        why: the reason, and what to do instead.
        off: the values at which it asks for nothing, so that nothing is missing.
    """

    why: str
    off: tuple[Any, ...] = (None, False, "", 0)


@dataclass(frozen=True)
class Refused:
    """A key whose value cannot be trained here at all; the command ends.

    Attributes:
        why: the reason, and what to do instead.
        off: the values at which it asks for nothing, so that nothing is refused.
    """

    why: str
    off: tuple[Any, ...] = (None, False, "", 0)


Row = To | Idle | Without | Refused


class Draft:
    """Their keys, and what has become of them so far.

    Args:
        keys: the content of their file.

    Attributes:
        keys: the content of their file.
        settings: our dotted key -> its value.
        remarks: our dotted key -> what is not quite the same.
        idle: reason -> the keys of theirs that say nothing here for it.
        missing: their key -> why it has no equivalent, and what to do.
        refused: why this cannot be trained here, a problem each.
        known: their keys that were asked for, in the file or not.
    """

    def __init__(self, keys: Mapping[str, Any]):
        self.keys = dict(keys)
        self.settings: dict[str, Any] = {}
        self.remarks: dict[str, list[str]] = {}
        self.idle: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}
        self.refused: list[str] = []
        self.known: set[str] = set()

    def given(self, key: str) -> bool:
        """Whether the file says anything for this key; null says nothing."""
        self.known.add(key)
        return self.keys.get(key) is not None

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key of theirs, which is accounted for by this."""
        return self.keys[key] if self.given(key) else default

    def number(self, key: str, default: float) -> float:
        """The number at a key of theirs, or in its text; any other value is refused."""
        value = self.take(key, default)
        try:
            if isinstance(value, bool) or not math.isfinite(float(value)):
                raise ValueError
        except (TypeError, ValueError):
            self.refuse(key, "must be a number")
            return default
        return float(value) if isinstance(value, str) else value

    def whole(self, key: str, default: int) -> int:
        """The whole number at a key of theirs; any other value is refused."""
        value = self.number(key, default)
        if value != int(value):
            self.refuse(key, "must be a whole number")
            return default
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false at a key of theirs, in the words of YAML 1.1 too."""
        value = truth(self.take(key, default))
        if isinstance(value, bool):
            return value
        self.refuse(key, "must be true or false")
        return default

    def choice(self, key: str, default: str, choices: Iterable[str]) -> str:
        """The word at a key of theirs, one of `choices`; any other is refused."""
        value = self.take(key, default)
        if isinstance(value, str) and value in choices:
            return value
        self.refuse(key, "is not known" + suggest(str(value), choices))
        return default

    def set(self, key: str, value: Any, remark: str = "") -> None:
        """Gives a key of ours its value, and says what is not quite the same."""
        self.settings[key] = value
        self.remark(key, remark)

    def remark(self, key: str, text: str) -> None:
        """Says of a key of ours what is not quite the same, once; empty: nothing."""
        if text and text not in self.remarks.setdefault(key, []):
            self.remarks[key].append(text)

    def skip(self, key: str, why: str) -> None:
        """Notes that their key says nothing here, and why."""
        self.known.add(key)
        if key in self.keys and key not in self.idle.setdefault(why, []):
            self.idle[why].append(key)

    def lack(self, key: str, why: str) -> None:
        """Notes that their key has no equivalent; why, and what to do instead."""
        self.known.add(key)
        self.missing[key] = why

    def refuse(self, key: str, why: str) -> None:
        """Notes that what their key asks for cannot be trained: why, and what to do."""
        self.known.add(key)
        self.refused.append(f"{key}: found {shown(self.keys.get(key))}; {why}")

    def apply(self, rows: Mapping[str, Row]) -> None:
        """Does with every key that is left what its row says.

        Args:
            rows: their key -> what becomes of it; a key without a row has no
                equivalent.

        Raises:
            InputError: everything that was refused, at once.
        """
        known = {*rows, *self.known}
        for key, value in self.keys.items():
            if key in self.known:
                continue
            row = rows.get(key)
            if row is None:
                self.lack(key, f"is not a key that is known{near(key, known)}")
            else:
                self._apply(key, value, row)
        if self.refused:
            raise InputError(*self.refused)

    def _apply(self, key: str, value: Any, row: Row) -> None:
        if isinstance(row, To):
            if truth(value) not in row.off:
                self.set(row.key, row.convert(value), row.remark)
        elif isinstance(row, Idle):
            self.skip(key, row.why)
        elif truth(value) in row.off:
            self.skip(key, ASKS_NOTHING)
        elif isinstance(row, Refused):
            self.refuse(key, row.why)
        else:
            self.lack(key, row.why)


def names(value: Any) -> list[str]:
    """A list as it is, or text that separates its entries by commas."""
    entries = value if isinstance(value, list | tuple) else str(value).split(",")
    return [str(entry).strip() for entry in entries if str(entry).strip()]

"""Reading `config.json` strictly: every field is used, inert or refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.models import hf_neutral, stored

# Far above any model that exists: a size beyond it is a damaged file, and would be
# found out only by an allocation that takes the machine down.
LARGEST_SIZE = 2**24


class Fields:
    """A reader over `config.json` that collects every problem until `finish`.

    Args:
        hf: the content of the file.
        theta: the family's rope base, where the file has none.
        defaults: {field: its value in the family where the file lacks it}, as in
            transformers; null in a file is not a lack.
        names: {the name that a field has here: the family's}, under which a file may
            have it, too.

    Attributes:
        names: as given.
        hf: the content, with the family's names replaced by those used here.
        original: the content as given.
        theta: as given.
        defaults: as given.
        seen: the names of the fields that are used, or known to change nothing.
        problems: a sentence for each problem met so far.
    """

    def __init__(
        self,
        hf: Mapping[str, Any],
        theta: float = 10000.0,
        names: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        self.names = dict(names or {})
        ours = {theirs: name for name, theirs in self.names.items()}
        renamed = {ours[name]: value for name, value in hf.items() if name in ours}
        self.hf = {k: v for k, v in hf.items() if k not in ours} | renamed
        self.original, self.theta = hf, theta
        self.defaults = dict(defaults or {})
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def get(self, name: str, default: Any) -> Any:
        """The field's value as the file has it.

        Args:
            name: of the field.
            default: its value where the file has null, or has none and the family has
                no default.
        """
        self.seen.add(name)
        value = self.hf.get(name, self.defaults.get(name))
        return default if value is None else value

    def problem(self, name: str, wanted: str) -> None:
        """Records that the field's value is not what it has to be.

        Args:
            name: of the field.
            wanted: what the message says that it must be.
        """
        self.problems.append(f"{self._found(name)}; it must be {wanted}")

    def size(self, name: str, default: int | None = None) -> int:
        """The field's value, a positive integer.

        Args:
            name: of the field.
            default: its value where the file has none; None: then that is a problem.

        Returns:
            The value, or 1 where there is a problem.
        """
        value = self.get(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 < value <= LARGEST_SIZE:
            self.problem(name, f"a whole number from 1 to {LARGEST_SIZE}")
            return 1
        return value

    def number(self, name: str, default: float, *, positive: bool = False) -> float:
        """The field's value, a finite number.

        Args:
            name: of the field.
            default: its value where the file has none or there is a problem.
            positive: it must be above 0; else 0 or more.
        """
        value = self.get(name, default)
        if not is_number(value) or value < 0 or (positive and value == 0):
            self.problem(name, "a number above 0" if positive else "a number from 0")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """The field's value, true or false; `default` if missing or malformed."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.problem(name, "true or false")
            return default
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """The field's value, one of `choices`; `default` if missing or another."""
        value = self.get(name, default)
        if value not in choices:
            self.problem(name, "one of " + ", ".join(choices))
            return default
        return value

    def cap(self, name: str) -> float | None:
        """The field's value, a number above 0, or None where there is none.

        Args:
            name: of the field; null in the file is none, whatever the family's default.
        """
        value = self.get(name, None)
        return None if value is None else self.number(name, 1.0, positive=True)

    def bits(self, name: str, default: Sequence[bool]) -> list[bool]:
        """The field's value, a list of as many zeros and ones as `default` has.

        Args:
            name: of the field.
            default: its value where the file has none or there is a problem.

        Returns:
            The same as booleans.
        """
        value = self.get(name, list(default))
        sound = isinstance(value, list) and all(x in (0, 1) for x in value)
        if not sound or len(value) != len(default):
            self.problem(name, f"a list of {len(default)} zeros and ones")
            return list(default)
        return [bool(x) for x in value]

    def refuse(self, name: str, remedy: str) -> None:
        """Records that the field's value cannot be handled.

        Args:
            name: of the field.
            remedy: what the message says after the value.
        """
        self.seen.add(name)
        self.problems.append(f"{self._found(name)}; {remedy}")

    def _found(self, name: str) -> str:
        """A field and its value as a message begins: named as in the file."""
        value = repr(self.hf[name]) if name in self.hf else "nothing"
        if name not in self.hf and name in self.defaults:
            value += f", which stands for {self.defaults[name]!r}"
        return f"config.json: {self.names.get(name, name)}: found {value}"

    def finish(self) -> None:
        """Ends the reading: fields that nobody asked for are problems as well.

        Raises:
            InputError: with all problems, where there are any.
        """
        unknown = {
            name
            for name in self.hf
            if name not in self.seen and not hf_neutral.is_neutral(self.hf, name)
        }
        unknown.discard("quantization_config")
        try:
            stored.quantization(self.hf)
        except InputError as error:
            self.problems += error.problems
        self.problems += [
            f"config.json: {name}: found {self.hf[name]!r}; this field is not handled "
            f"for model_type {self.hf.get('model_type')!r}, and ignoring it could "
            "change the model"
            for name in sorted(unknown)
        ]
        if self.problems:
            raise InputError(*self.problems)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number and no boolean.

    Args:
        value: of a field.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)

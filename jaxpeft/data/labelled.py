"""Records with a label: a text, or a conversation, and the class that it is of."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpeft.data import sources
from jaxpeft.data.chat_formats import openai_turns, system_of, tools_of
from jaxpeft.data.columns import Fields, Record, column_of, value_of, weight
from jaxpeft.data.conversation import Conversation, Sample
from jaxpeft.data.formats import COLUMNS, FORMATS
from jaxpeft.data.kinds import Kind
from jaxpeft.data.rejects import Rejects
from jaxpeft.errors import InputError, suggest

if TYPE_CHECKING:
    from jaxpeft.config import DataSection

LABEL, WEIGHT = "label", "weight"
MOST = 10_000  # classes; more are rather texts that were taken for labels


class Labels(NamedTuple):
    """The classes that there are.

    Attributes:
        count: how many.
        names: their names, in the order of their numbers; empty: they have none.
    """

    count: int
    names: tuple[str, ...] = ()


def kind(labels: Labels) -> Kind:
    """What records with a label become: one example each, with `label` and `weight`.

    The label is a class's name, or its number from 0 where no name is a number. The
    weight is 1 unless the record has another.

    Args:
        labels: the classes.
    """
    return Kind(
        name=f"labelled {labels.count} {labels.names!r}",
        readers={
            format: functools.partial(_read, of=format, labels=labels)
            for format in FORMATS
        },
        fields={format: (*names, LABEL, WEIGHT) for format, names in COLUMNS.items()},
        columns={LABEL: "int32", WEIGHT: "float32"},
        train_on="all",
        ends_documents=False,
        check=functools.partial(_check, labels=labels),
    )


def _read(record: Record, fields: Fields, *, of: str, labels: Labels) -> Sample:
    own = {
        name: column for name, column in fields.items() if name not in (LABEL, WEIGHT)
    }
    item = _talk(record, own) if of == "messages" else FORMATS[of](record, own)
    if isinstance(item, str) and not item.strip():
        raise InputError(f"column {column_of(fields, 'text')!r} is empty")
    value = value_of(record, fields, LABEL, required=True)
    number = number_of(value, labels, column_of(fields, LABEL))
    return Sample((item,), {LABEL: number, WEIGHT: weight(record, fields)})


def _talk(record: Record, fields: Fields) -> Conversation:
    """A conversation that need not end with an answer: a question has a class, too."""
    turns = openai_turns(record, fields, "messages")
    if not turns:
        raise InputError("the conversation is empty")
    if (system := system_of(record, fields)) and turns[0]["role"] != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return Conversation(turns, tools_of(record, fields))


def number_of(value: Any, labels: Labels, column: str) -> int:
    """The number of a record's class.

    Args:
        value: the record's label.
        labels: the classes.
        column: what the file calls the label.

    Raises:
        InputError: the label is none of them.
    """
    called = _called(value)
    if called in labels.names:
        return labels.names.index(called)
    number = _number(value)
    # Beside names that are numbers themselves a number could be meant either way.
    counts = not any(map(_reads_as_value, labels.names))
    if counts and number is not None and 0 <= number < labels.count:
        return number
    if labels.names:
        raise InputError(
            f"column {column!r}: {value!r} is no label"
            f"{suggest(called, labels.names)}; the labels are those of "
            "objective.labels, or of the training data"
        )
    raise InputError(
        f"column {column!r}: found {value!r}; objective.num_labels is {labels.count}, "
        f"so that a label is a whole number from 0 to {labels.count - 1}"
    )


def _called(value: Any) -> str:
    """What a label is called: numbers and truth values as JSON writes them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _reads_as_value(name: str) -> bool:
    return _number(name) is not None or name.lower() in ("true", "false")


def _number(value: Any) -> int | None:
    """The whole number that a label is, or that its text is, as in csv."""
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return None


def found(section: "DataSection") -> Labels:
    """The classes that the labels of the training data are of.

    Whole numbers count from 0 to the largest; other texts are names, in the order of
    the alphabet.

    Args:
        section: the section `data` of a configuration.

    Raises:
        InputError: a file cannot be read, or has no column of labels.
    """
    values: dict[str, Any] = {}  # by their names: true is not 1
    for source in section.train:
        origin, fields = sources.source_of(source), source.fields or {}
        rejects = Rejects(str(origin), skip=section.on_error == "skip")
        for row in sources.read(origin, source.max_samples, rejects):
            if not isinstance(row.value, Mapping):
                continue
            value = row.value.get(column_of(fields, LABEL))
            if isinstance(value, str | bool | int | float):
                values[_called(value)] = value
    if not values:
        paths = ", ".join(source.path for source in section.train)
        raise InputError(
            f"{paths}: no record has a label; name its column with fields: {{label: "
            "your_column}"
        )
    numbers = [_number(value) for value in values.values()]
    if None not in numbers:
        return _counted([n for n in numbers if n is not None])
    names = tuple(sorted(values))
    if len(names) < 2:
        only = next(iter(values))
        paths = ", ".join(source.path for source in section.train)
        raise InputError(
            f"{paths}: all records have the label {only!r}; a classifier "
            "needs two or more: name its column with fields: {label: your_column}, "
            "or the classes with objective.labels"
        )
    if len(names) > MOST:
        raise InputError(
            f"objective.labels: the data have {len(names):,} different labels, more "
            f"than {MOST:,}; name the column of the classes with fields: {{label: "
            "your_column}"
        )
    return Labels(len(names), names)


def _counted(numbers: Sequence[int]) -> Labels:
    if min(numbers) < 0 or max(numbers) >= MOST:
        worst = min(numbers) if min(numbers) < 0 else max(numbers)
        raise InputError(
            f"objective.num_labels: the data have the label {worst}; labels are whole "
            f"numbers from 0, at most {MOST:,} of them, or names"
        )
    return Labels(max(2, max(numbers) + 1))


def _check(path: str, examples: Any, *, labels: Labels) -> list[str]:
    """A line about classes of which there is no example."""
    seen = set(np.unique(examples.columns[LABEL]).tolist())
    missing = [number for number in range(labels.count) if number not in seen]
    if not missing:
        return []
    shown = [labels.names[n] if labels.names else str(n) for n in missing[:5]]
    more = "" if len(missing) <= 5 else f" and {len(missing) - 5} more"
    return [
        f"{path}: no example has the label {', '.join(shown)}{more}, "
        f"of {labels.count} labels"
    ]

"""Tables of components that a configuration chooses from by name.

A component is a callable; its keyword parameters, with their annotations, are the
schema of the configuration keys that reach it. Nothing else declares them.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.config import JsonDict

from jaxpeft.config.wording import shown, wanted
from jaxpeft.errors import suggest

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


class Row(Protocol):
    """A line of a table: a component, and whatever is special about it (its traits).

    Who needs to know what is special asks the line, and never for a name.
    """

    @property
    def make(self) -> Callable[..., Any]:
        """The callable that makes the component."""
        ...


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Table(Generic[RowT]):
    """Components by name, the other names they go by, and what they get from the code.

    Attributes:
        rows: name -> the component with its traits.
        aliases: another name -> a name in `rows`.
        given: parameters that the code supplies when it builds; they are no keys.
        all_say: what the components' keys say of themselves, one of the constants of
            `keys`; None: they are no keys of a run's configuration.
        some_say: key -> what it says instead.
        others: from a name that `rows` has not to its row, where another library has
            the component, or to why it cannot be had; None: it is nobody's.
        implied: alias -> {key of the section: what the alias sets unless it is given}.
    """

    rows: Mapping[str, RowT]
    aliases: Mapping[str, str] = field(default_factory=dict)
    given: Collection[str] = ()
    all_say: JsonDict | None = None
    some_say: Mapping[str, JsonDict] = field(default_factory=dict)
    others: Callable[[str], RowT | str | None] = lambda name: None
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        """The names of the rows."""
        return iter(self.rows)

    def __getitem__(self, name: str) -> RowT:
        """The row of that name or alias."""
        row = self.found(name)
        if row is None or isinstance(row, str):
            raise KeyError(name)
        return row

    def found(self, name: str) -> RowT | str | None:
        """The row of that name or alias, why there is none, or None: it is not known.

        Args:
            name: any name.
        """
        name = self.resolve(name)
        return self.rows[name] if name in self.rows else self.others(name)

    @property
    def entries(self) -> dict[str, Callable[..., Any]]:
        """The components' callables by name, without their traits."""
        return {name: row.make for name, row in self.rows.items()}

    def says_of(self, key: str) -> JsonDict:
        """What a component's key says of itself: one of the constants of `keys`.

        Args:
            key: the key's own name, without the section.

        Raises:
            LookupError: the table says nothing of the key.
        """
        said = self.some_say.get(key, self.all_say)
        if said is None:
            raise LookupError(f"the table says nothing of {key!r}: see config.keys")
        return said

    def resolve(self, name: str) -> str:
        """The name in `rows` that `name` stands for, or `name` itself."""
        return self.aliases.get(name, name)

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword parameters of a component by name, `given` ones included.

        Args:
            name: the component's name or alias.
        """
        signature = inspect.signature(self[name].make, eval_str=True)
        skipped = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
        return {n: p for n, p in signature.parameters.items() if p.kind not in skipped}

    def keys(self, name: str) -> list[str]:
        """The configuration keys of a component; none if there is no such component.

        Args:
            name: the component's name or alias.
        """
        if isinstance(self.found(name), str | None):
            return []
        return [
            key
            for key, parameter in self.parameters(name).items()
            if key not in self.given and parameter.kind is not parameter.VAR_KEYWORD
        ]


def check_call(
    section: str,
    name: str,
    table: Table,
    kwargs: Mapping[str, Any],
    meant: Callable[[str, list[str]], str] = suggest,
    selector: str = "name",
) -> list[str]:
    """What is wrong with calling the component `name` with these keys of a section.

    Args:
        section: the section's name, for messages.
        name: the component chosen.
        table: what there is to choose from.
        kwargs: the section's keys that are meant for the component.
        meant: the tail of the message about an unknown key, from it and the known ones.
        selector: the section's key that chose the component, for messages.

    Returns:
        A problem for each unknown, mistyped or missing key; empty if all is well.
    """
    row = table.found(name)
    if isinstance(row, str):
        return [f"{section}.{selector}: found {name!r}; {row}"]
    if row is None:
        near = difflib.get_close_matches(name, [*table.rows, *table.aliases])
        tail = suggest(name, near or table.rows)
        return [f"{section}.{selector}: found {name!r}; is not known{tail}"]
    parameters, keys = table.parameters(name), table.keys(name)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    problems = []
    for key, value in kwargs.items():
        opening = f"{section}.{key}: found {shown(value)}"
        if key in table.given:
            problems.append(f"{opening}; is set by the run itself; remove it")
        elif key in keys:
            fault = _fault(parameters[key].annotation, value)
            problems += [f"{opening}; {fault}"] if fault else []
        elif not takes_any:
            tail = meant(key, keys) + _of_another(section, selector, name, table, key)
            problems.append(f"{opening}; is not a key of {name!r}{tail}")
    problems += [
        f"{section}.{key}: is missing; {name!r} needs it, {described(annotation)}"
        for key in keys
        if key not in kwargs and parameters[key].default is inspect.Parameter.empty
        for annotation in [parameters[key].annotation]
    ]
    return problems


def _of_another(section: str, selector: str, name: str, table: Table, key: str) -> str:
    """What to do about a key of another component: a file that chose it names more."""
    owners = [repr(other) for other in table if key in table.keys(other)]
    if not owners:
        return ""
    more = " and others" if len(owners) > 3 else ""
    return (
        f"; it is one of {', '.join(owners[:3])}{more}: leave it out, or give the "
        f"section as a whole on the command line, '{section}={{{selector}: {name}}}'"
    )


def _fault(annotation: Any, value: Any) -> str:
    """What `value` must be to be one of `annotation`; empty if it is."""
    if annotation is inspect.Parameter.empty:
        annotation = Any
    adapter = TypeAdapter(annotation, config=_STRICT)
    try:
        # YAML has no tuples: a list stands for one.
        adapter.validate_python(tuple(value) if _is_tuple(annotation, value) else value)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if len(errors) == 1 and not errors[0]["loc"]:
            return wanted(errors[0])
        return f"must be {described(annotation)}"
    return ""


def _is_tuple(annotation: Any, value: Any) -> bool:
    origins = [typing.get_origin(a) or a for a in _alternatives(annotation)]
    return isinstance(value, list) and tuple in origins and list not in origins


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def described(annotation: Any) -> str:
    """An annotation in words, such as "text or a list (each text)"."""
    kinds = []
    for kind in _alternatives(annotation):
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Literal:
            kinds += [shown(choice) for choice in arguments]
        elif origin is typing.Annotated:
            kinds.append(described(arguments[0]))
        elif isinstance(origin, type) and issubclass(origin, Collection):
            items = [described(a) for a in arguments if a is not Ellipsis]
            shape = "a mapping" if issubclass(origin, Mapping) else "a list"
            kinds.append(f"{shape} (each {items[-1]})" if items else shape)
        else:
            kinds.append(_NAMES.get(kind, getattr(kind, "__name__", "a value")))
    return " or ".join(dict.fromkeys(kinds))

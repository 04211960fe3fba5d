"""YAML as people expect it: `2e-4` is a number, a repeated key is an error.

Numbers and booleans follow the YAML 1.2 core schema, which PyYAML (YAML 1.1) does not.
What could run code, hide a mistake or exhaust the machine is refused before any value
is built: tags, repeated keys, deep nesting, alias bombs.
"""

import math
import re
from typing import Any, ClassVar

import yaml

from jaxpeft.errors import InputError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")

# (tag, whole-match pattern, possible first characters): YAML 1.2, section 10.3.2.
_FLOAT = (
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_RESOLVERS = (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", r"<<$", ["<"]),
)

# What a value that is no plain text begins with; `#` begins one here.
_INDICATORS = tuple("[{\"'!&*|>@%`")


def load(text: str | bytes, name: str) -> dict[str, Any]:
    """The mapping that a YAML document holds; every key in it is a string.

    Args:
        text: the document; bytes are read as UTF-8.
        name: the file's name, for messages.

    Raises:
        InputError: the document is not one plain YAML mapping; the message starts
            with `name:line`.
    """
    value = _parse(_decoded(text, name), name)
    if value is None:
        raise InputError(f"{name}:1: is empty; write `key: value` lines in it")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else repr(value)[:60]
        raise InputError(
            f"{name}:1: found {kind} at the top; write a mapping: `key: value` lines"
        )
    return value


def parse_scalar(text: str, name: str = "value") -> Any:
    """The value that a text would have after `key:` in a file, all of it.

    In a line of a file ` #` begins a comment. Nobody comments a value on a command
    line: there it is a part of the text.

    Args:
        text: the value as YAML, such as `2e-4`, `[a, b]` or `on`.
        name: what the value is called in messages.

    Raises:
        InputError: `text` is not a YAML value; the message starts with `name`.
    """
    try:
        decoded = _decoded(text, name)
        if not _has_comment(decoded):
            return _parse(decoded, name)
        if decoded.lstrip()[:1] not in _INDICATORS:
            return decoded.strip()
        raise InputError(
            f"{name}:1: ' #' would begin a comment, and what follows it be lost; put "
            "the text that holds it in quotes"
        )
    except InputError as error:
        excerpt = text if len(text) <= 60 else text[:57] + "..."
        reason = error.problems[0].removeprefix(f"{name}:1: ")
        raise InputError(f"{name}: found {excerpt!r}; {reason}") from None


def dump(mapping: dict[str, Any]) -> str:
    """The YAML that `load` reads back to an equal mapping; tuples become lists."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def dump_scalar(value: Any) -> str:
    """The text in one line that `parse_scalar` reads back to the very value.

    Numbers are as short as they can be; text stands in quotes only where it would be
    read as anything else.

    Args:
        value: what YAML can hold; lists and mappings are written in brackets.
    """
    # Within a list, what is no text in any place of a line is quoted.
    line = yaml.dump(
        [value],
        Dumper=_LineDumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    return line.rstrip("\n")[1:-1]


def _decoded(text: str | bytes, name: str) -> str:
    if len(text) > MAX_BYTES:
        raise InputError(
            f"{name}:1: is larger than {MAX_BYTES:,} bytes; name a configuration file"
        )
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}:{line}: found byte 0x{text[error.start]:02x}, which is not UTF-8; "
            "name a text file, saved as UTF-8"
        ) from None


def _has_comment(text: str) -> bool:
    """Whether YAML would pass over a part of the text: what stands between tokens."""
    end = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if "#" in text[end : token.start_mark.index]:
                return True
            end = max(end, token.end_mark.index)
    except yaml.YAMLError:
        return False  # reading it will say what is wrong
    return False


def _parse(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{name}:{line}: found the control character U+{error.character:04X}; "
            "name a text file, not a binary one"
        ) from None
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{name}:{_explained(error)}") from None


def _explained(error: yaml.MarkedYAMLError) -> str:
    """The message `line: what is wrong; the remedy` for an error in reading YAML."""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = error.problem or error.context or "is not YAML"
    if isinstance(error, _Refused):
        return f"{line}: {problem}"
    if "'\\t'" in problem:
        return f"{line}: found a tab; indent with spaces"
    where = f" {error.context}" if error.context else ""
    return (
        f"{line}: {problem}{where}; check indentation and brackets, and put text that "
        "holds special characters in quotes"
    )


class _Refused(yaml.MarkedYAMLError):
    """Correct YAML that a configuration may not hold; its message has the remedy."""

    def __init__(self, problem: str, mark: yaml.Mark):
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars, no tags, and bounds on the tree."""

    # Emptied, so that nothing of YAML 1.1 (sexagesimals, dates, yes and no) is left.
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.nodes = 0  # what the document holds once every alias is written out
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent, index):
        """The next node, refused with a tag or where the tree grows too large."""
        event = self.peek_event()
        mark, tag = event.start_mark, getattr(event, "tag", None)
        if tag is not None:
            tag = tag.replace(_TAG, "!!")[:60]
            raise _Refused(f"found the tag {tag!r}; write a value without one", mark)
        if self.depth >= MAX_DEPTH:
            raise _Refused(f"is nested deeper than {MAX_DEPTH}; flatten it", mark)
        before, alias = self.nodes, self.check_event(yaml.AliasEvent)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and id(node) not in self.sizes:
            raise _Refused("an anchor that contains itself; write it out", mark)
        self.nodes += self.sizes[id(node)] if alias else 1
        if self.nodes > MAX_NODES:
            raise _Refused(
                f"holds more than {MAX_NODES:,} values once aliases are written out; "
                "remove aliases",
                mark,
            )
        self.sizes.setdefault(id(node), self.nodes - before)
        return node

    def compose_mapping_node(self, anchor):
        """The mapping node, refused where a key is repeated or is not text."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                kind = repr(key.value) if key.id == "scalar" else "a collection"
                raise _Refused(
                    f"found {kind} as a key; keys are text: put it in quotes",
                    key.start_mark,
                )
            if key.value in lines:
                raise _Refused(
                    f"the key {key.value!r} is already on line {lines[key.value]}; "
                    "keep one of the two",
                    key.start_mark,
                )
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        """The whole number that the scalar spells."""
        text = self.construct_scalar(node)
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:  # more digits than Python converts
            problem = f"found a number of {len(text)} digits; write a smaller one"
            raise _Refused(problem, node.start_mark) from None


_Loader.add_constructor(_TAG + "int", _Loader.construct_whole_number)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever YAML 1.1 or 1.2 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text as it stands, or escaped where YAML would fold its line breaks."""
        style = '"' if _LINE_BREAKS.search(text) else None
        return self.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


class _LineDumper(_Dumper):
    """The same, with nothing that takes more than one line, and with short numbers."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Text as it stands, or escaped where it would take more than one line."""
        style = None if text.splitlines() in ([text], []) else '"'
        return self.represent_scalar(_TAG + "str", text, style=style)

    def represent_number(self, number: float) -> yaml.ScalarNode:
        """The fewest digits that give the very number, and never a whole one."""
        if not math.isfinite(number):
            return self.represent_float(number)
        short = f"{number:g}"
        short = short if float(short) == number else repr(number)
        short += "" if set(short) & set(".e") else ".0"
        return self.represent_scalar(_TAG + "float", short)


_LineDumper.add_representer(str, _LineDumper.represent_text)
_LineDumper.add_representer(float, _LineDumper.represent_number)

# The dumper's stand on top of YAML 1.1's own, so that neither kind of reader takes text
# for a number.
for _kind, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)

"""How LLaMA-Factory describes a record, as our formats and the names of their columns.

By `DatasetAttr.join` and the converters there: a column that `columns` leaves out is
not read, whatever the file has; without `columns` the three of Alpaca or the
conversations are.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from jaxpeft.config.wording import shown
from jaxpeft.errors import suggest

TEXT_ONLY = (
    "models here read text alone; take the text part of the data and a text model"
)
MEDIA = ("images", "videos", "audios")
FORMATTINGS = ("alpaca", "sharegpt", "openai")
# Their key in `columns`: the name in our format.
COLUMNS = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
    "sharegpt": {
        "messages": "conversations",
        "system": "system",
        "tools": "tools",
    },
    "messages": {"messages": "messages", "system": "system", "tools": "tools"},
    "text": {"prompt": "text"},
}
# In the place of the answer, of pairs and of answers with a label.
PAIR = {"chosen": "chosen", "rejected": "rejected"}
LABEL = {"kto_tag": "label"}
# What is read there where the description has no `columns`.
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
CONVERSATIONS = {"messages": "conversations"}
REQUIRED = (
    "instruction",
    "output",
    "conversations",
    "messages",
    "text",
    *PAIR,
    "label",
)
PREFERRED = ("chosen", "rejected")  # columns of preference data, else not looked at
# The values of a turn's role that we read, by the tag that names another one.
ROLES: dict[str, dict[str, tuple[str, ...]]] = {
    "sharegpt": {
        "user_tag": ("human", "user"),
        "assistant_tag": ("gpt", "assistant"),
        "observation_tag": ("observation", "tool"),
        "function_tag": ("function_call",),
        "system_tag": ("system",),
    },
    "messages": {
        "user_tag": ("user",),
        "assistant_tag": ("assistant",),
        "observation_tag": ("tool",),
        "function_tag": (),
        "system_tag": ("system",),
    },
}


class Layout(NamedTuple):
    """How the records of a data set are laid out, in our keys.

    Attributes:
        keys: `format` and `fields`; the latter is left out where every column has its
            usual name.
        unread: {what of theirs: why it is not read here, and what to do}.
        refused: why the records cannot be learned from, a problem each.
    """

    keys: dict[str, Any]
    unread: dict[str, str]
    refused: list[str]


def layout(
    entry: Mapping[str, Any], present: Collection[str] | None, kind: str
) -> Layout:
    """The layout of a data set's records, by its description.

    Args:
        entry: the description.
        present: the columns that the file has; None: that is not known.
        kind: what the records are, see `dataset_info.KINDS`.
    """
    unread: dict[str, str] = {}
    refused = []
    formatting = entry.get("formatting") or "alpaca"
    if formatting not in FORMATTINGS:
        tail = suggest(str(formatting), FORMATTINGS)
        refused.append(f"formatting: found {shown(formatting)}; is not known{tail}")
        formatting = "alpaca"
    usual = ALPACA if formatting == "alpaca" else CONVERSATIONS
    read, tags = inner({"columns": usual} | {**entry}, "columns"), inner(entry, "tags")
    found = f"columns: found {shown(entry.get('columns'))}"
    if not all(isinstance(name, str | None) for name in read.values()):
        refused.append(f"{found}; must name columns of the file")
        read = usual
    refused += [f"{found}; has {m}; {TEXT_ONLY}" for m in MEDIA if read.get(m)]
    format_ = "text" if kind == "text" else _format(formatting, tags)
    known = _known(format_, kind)
    fields = {ours: read.get(theirs) for theirs, ours in known.items()}
    if format_ == "alpaca" and not fields["instruction"]:
        fields |= {"instruction": fields["input"], "input": None}
    fields |= _turns(unread, format_, tags)
    needed = [name for name in REQUIRED if name in fields and not fields[name]]
    if needed:
        unread["columns"] = f"names none for {' and '.join(needed)}"
    # The answer is not read in pretraining, there as here.
    beside = {*known, *PREFERRED, *MEDIA} | ({"response"} if kind == "text" else set())
    for theirs in sorted(set(read) - beside):
        if read[theirs] and (present is None or read[theirs] in present):
            unread[theirs] = f"format {format_} reads no such column"
    named = {
        name: column
        for name, column in fields.items()
        # What the file does not have needs no word that it is not read.
        if column != name and (column or present is None or name in present)
        if name not in needed
    }
    keys = {"format": format_} | ({"fields": named} if named else {})
    return Layout(keys, unread, refused)


def inner(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under a key; {} where there is none.

    Args:
        content: what has the key.
        key: the key.
    """
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def _known(format_: str, kind: str) -> dict[str, str]:
    """Their columns of a record and the names that they have in our format."""
    if kind == "pairs":
        known = {k: v for k, v in COLUMNS[format_].items() if v != "output"}
        return known | PAIR
    return COLUMNS[format_] | (LABEL if kind == "labelled" else {})


def _format(kind: str, tags: Mapping[str, Any]) -> str:
    """Our format: conversations are `messages` where nothing has another name."""
    if kind == "alpaca":
        return "alpaca"
    openai = (tags.get("role_tag"), tags.get("content_tag")) == ("role", "content")
    for tag, values in ROLES["messages"].items():
        openai = openai and tags.get(tag) in (None, *values)
    return "messages" if openai else "sharegpt"


def _turns(
    unread: dict[str, str], format_: str, tags: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns of a turn; lists the roles that are not read by their name there."""
    if format_ not in ROLES:
        return {}
    for tag, known in ROLES[format_].items():
        value = tags.get(tag)
        if value is not None and value not in known:
            unread[tag] = f"a role {value!r} is not read" + (
                f"; call it {known[0]!r} in the file" if known else ""
            )
    if format_ == "messages":
        return {}
    return {
        "from": tags.get("role_tag") or "from",
        "value": tags.get("content_tag") or "value",
    }

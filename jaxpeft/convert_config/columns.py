"""How LLaMA-Factory describes a record, as our formats and the names of their columns.

By `DatasetAttr.join` and the converters there: a column that `columns` leaves out is
not read, whatever the file has; without `columns` the three of Alpaca or the
conversations are.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jaxpeft.convert_config import files
from jaxpeft.convert_config.draft import Draft

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


def layout(
    draft: Draft,
    place: str,
    entry: Draft,
    present: Collection[str] | None,
    kind: str,
) -> dict[str, Any]:
    """The keys `format` and `fields` of a source, by the description of its data set.

    Args:
        draft: lists what has no equivalent.
        place: names the data set in their file, for those lines.
        entry: the description of the data set; what cannot be trained is refused in it.
        present: the columns that the file has; None: the file is not here.
        kind: what the records are, see `datasets.KINDS`.

    Returns:
        The two keys; `fields` is left out where every column has its usual name.
    """
    formatting = entry.choice("formatting", "alpaca", FORMATTINGS)
    usual = ALPACA if formatting == "alpaca" else CONVERSATIONS
    read = files.inner({"columns": usual} | entry.keys, "columns")
    tags = files.inner(entry.keys, "tags")
    if not all(isinstance(name, str | None) for name in read.values()):
        entry.refuse("columns", "must name columns of the file")
        read = usual
    for medium in MEDIA:
        if read.get(medium):
            entry.refuse("columns", f"has {medium}; {TEXT_ONLY}")
    format_ = "text" if kind == "text" else _format(formatting, tags)
    known = _known(format_, kind)
    fields = {ours: read.get(theirs) for theirs, ours in known.items()}
    if format_ == "alpaca" and not fields["instruction"]:
        fields |= {"instruction": fields["input"], "input": None}
    fields |= _turns(draft, place, format_, tags)
    needed = [name for name in REQUIRED if name in fields and not fields[name]]
    if needed:
        draft.lack(f"{place}: columns", f"names none for {' and '.join(needed)}")
    # The answer is not read in pretraining, there as here.
    beside = {*known, *PREFERRED, *MEDIA} | ({"response"} if kind == "text" else set())
    for theirs in sorted(set(read) - beside):
        if read[theirs] and (present is None or read[theirs] in present):
            draft.lack(f"{place}: {theirs}", f"format {format_} reads no such column")
    named = {
        name: column
        for name, column in fields.items()
        # What the file does not have needs no word that it is not read.
        if column != name and (column or present is None or name in present)
        if name not in needed
    }
    return {"format": format_} | ({"fields": named} if named else {})


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
    draft: Draft, place: str, format_: str, tags: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns of a turn; lists the roles that are not read by their name there."""
    if format_ not in ROLES:
        return {}
    for tag, known in ROLES[format_].items():
        value = tags.get(tag)
        if value is not None and value not in known:
            draft.lack(
                f"{place}: {tag}",
                f"a role {value!r} is not read; call it {known[0]!r} in the file",
            )
    if format_ == "messages":
        return {}
    return {
        "from": tags.get("role_tag") or "from",
        "value": tags.get("content_tag") or "value",
    }

"""LLaMA-Factory's `dataset_info.json`: data sets by their names, in our keys.

The format of that file: https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft.config.wording import shown
from jaxpeft.data.json_text import parse_value
from jaxpeft.data.layouts import inner, layout
from jaxpeft.errors import InputError, near

INFO = "dataset_info.json"
# What records are: texts, conversations, pairs of answers, and answers with a label.
KINDS = ("text", "answers", "pairs", "labelled")
# Their keys of a data set of the hub: ours.
HUB = {
    "hf_hub_url": "path",
    "subset": "name",
    "split": "split",
    "revision": "revision",
    "folder": "data_dir",
}
_OTHER_HUBS = ("ms_hub_url", "om_hub_url")
# Where a data set may be; the first that is given counts.
PLACES = ("hf_hub_url", *_OTHER_HUBS, "script_url", "cloud_file_name", "file_name")
_KNOWN = ("formatting", "ranking", "columns", "tags", "num_samples")
KNOWN = (*dict.fromkeys((*PLACES, *HUB, *_KNOWN, "load_from")),)
_ANSWERS = ("response", "messages", "chosen", "rejected")
_MOST_NAMES = 10


@dataclass
class Described:
    """A data set of theirs, as a source of ours.

    Attributes:
        keys: `path`, `format`, and where they say something `fields`, `name`, `split`,
            `revision` and `data_dir`.
        num_samples: so many are drawn at random there; 0: all.
        absent: why the data are not at `path`, and what to do; "": they may be.
        unread: {what of theirs: why it is not read here, and what to do}.
        unknown: keys that mean nothing, there either.
        unlike: why records of the kind that is wanted are not to be had; "": they are.
        refused: what else prevents that they are learned from, a problem each.
    """

    keys: dict[str, Any]
    num_samples: int = 0
    absent: str = ""
    unread: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unlike: str = ""
    refused: list[str] = field(default_factory=list)


def read(path: Path) -> Mapping[str, Any]:
    """The descriptions in a file, {name: description}.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        content = parse_value(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, Mapping):
            raise InputError("holds no JSON object")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: is not valid JSON ({error}); mend the file"
        ) from error
    return content


def names(content: Any) -> list[str]:
    """The names of what is a description in a file's content.

    Args:
        content: of the file; none where it is another program's.
    """
    if not isinstance(content, Mapping):
        return []
    return [
        name
        for name, entry in content.items()
        if isinstance(entry, Mapping) and any(place in entry for place in PLACES)
    ]


def nearest(word: str | None, known: Collection[str]) -> str:
    """Some names as a list for a message, those that are most like a word first.

    Args:
        word: what was given; None: the names stay in their order.
        known: the names.
    """

    def unlike(name: str) -> float:
        pair = (str(word).lower(), name.lower())
        return -difflib.SequenceMatcher(None, *pair).ratio()

    ordered = list(known) if word is None else sorted(known, key=unlike)
    more = len(ordered) - _MOST_NAMES
    tail = f" and {more} more" if more > 0 else ""
    return ", ".join(ordered[:_MOST_NAMES]) + tail


def described(
    entry: Mapping[str, Any],
    name: str,
    folder: str,
    kind: str,
    present: Collection[str] | None = None,
) -> Described:
    """A data set by its description.

    Args:
        entry: the description.
        name: of the data set.
        folder: the one that the file with the description is in.
        kind: what the records are to be, one of `KINDS`.
        present: the columns that its file has; None: that is not known.
    """
    found = _place(entry, name, folder)
    found.unlike = _unlike(entry, kind)
    laid_out = layout(entry, present, kind)
    found.keys |= laid_out.keys
    if found.keys["path"].endswith(".txt"):
        found.keys.pop("fields", None)  # it has lines, no columns
    found.unread |= laid_out.unread
    found.refused += laid_out.refused
    found.unknown = sorted(set(entry) - set(KNOWN))
    count = entry.get("num_samples")
    if isinstance(count, int) and not isinstance(count, bool) and count > 0:
        found.num_samples = count
    elif count is not None:
        found.refused.append(
            f"num_samples: found {shown(count)}; must be a number from 1"
        )
    return found


def is_text(entry: Mapping[str, Any]) -> bool:
    """Whether a description is of plain documents: it names no column of answers.

    Args:
        entry: the description.
    """
    if str(entry.get("file_name")).endswith(".txt"):
        return True
    columns = inner(entry, "columns")
    return bool(columns.get("prompt")) and not any(map(columns.get, _ANSWERS))


def _place(entry: Mapping[str, Any], name: str, folder: str) -> Described:
    """Where a data set is."""
    where = next((place for place in PLACES if entry.get(place)), None)
    value = entry.get(where) if where else name
    if not isinstance(value, str):
        return Described(
            {"path": str(Path(folder) / name)},
            refused=[
                f"{where}: found {shown(value)}; name one file, or a folder of them"
            ],
        )
    if where == "hf_hub_url":
        given = {ours: entry[key] for key, ours in HUB.items() if entry.get(key)}
        return Described(given)
    if where == "cloud_file_name":
        return Described({"path": value}, unread=_part(entry))
    if where == "file_name":
        return Described({"path": str(Path(folder) / value)}, unread=_part(entry))
    path = str(Path(folder) / str(entry.get("file_name") or name))
    return Described(
        {"path": path}, absent=_absent(where, value, path), unread=_part(entry)
    )


def _part(entry: Mapping[str, Any]) -> dict[str, str]:
    if entry.get("split") in (None, "train"):
        return {}
    return {"split": "the whole file is read; cut it to that part"}


def _absent(where: str | None, value: str, path: str) -> str:
    if where == "script_url":
        return (
            f"is made by a program (script_url {value}), which is never run here; "
            f"write what it gives as jsonl, and name that file as file_name"
        )
    place = f"{where} {value}" if where else "no file_name"
    return (
        f"is not on this machine ({place}); fetch it, for instance with `hf download "
        f"--repo-type dataset`, put a json, jsonl, csv or parquet file or a folder of "
        f"them at {path!r}, or correct the path"
    )


def _unlike(entry: Mapping[str, Any], kind: str) -> str:
    """Why an objective cannot learn from a data set; "" where it can."""
    ranked = entry.get("ranking") or False
    if not isinstance(ranked, bool):
        return f"ranking: found {shown(ranked)}; must be true or false"
    if ranked and kind != "pairs":
        return (
            "holds pairs of answers (ranking: true); learn them with stage: dpo, here "
            "objective.name: dpo, or describe the chosen ones as an ordinary data set"
        )
    if kind == "pairs" and not ranked:
        return (
            "is not described as pairs of answers; name one with ranking: true and "
            "the columns chosen and rejected"
        )
    if kind == "labelled" and not inner(entry, "columns").get("kto_tag"):
        return "names no kto_tag among its columns, which says what answers are wanted"
    return ""


def unknown(entry: str, keys: Collection[str]) -> str:
    """What is to be said of keys that mean nothing, there either.

    Args:
        entry: what names the data set.
        keys: the keys, one or more.
    """
    tail = "".join(near(key, KNOWN) for key in keys)
    return f"{entry}: {', '.join(keys)}: is no key of a data set's description{tail}"

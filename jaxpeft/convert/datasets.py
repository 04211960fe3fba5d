"""LLaMA-Factory's data sets: names, looked up in `dataset_info.json`, as our sources.

The format of that file: https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.convert.draft import Draft, names
from jaxpeft.data import sources
from jaxpeft.errors import InputError, suggest

INFO = "dataset_info.json"
# A column's key in `columns`: the name of ours, and the column if it is left out.
ALPACA = {
    "prompt": ("instruction", "instruction"),
    "query": ("input", "input"),
    "response": ("output", "output"),
    "system": ("system", "system"),
    "history": ("history", "history"),
}
ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
MEDIA = ("images", "videos", "audios")
# The values of a turn's role that we read, by the tag that names another one.
ROLES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function"),
    "system_tag": ("system",),
}
# Keys of a data set's description that say nothing about a local file.
SAID = {"file_name", "formatting", "columns", "tags", "num_samples", "ranking"}
OTHER = {"subset", "folder", "split", "load_from", *ELSEWHERE}


def read_sources(draft: Draft, key: str, pretraining: bool) -> list[dict[str, Any]]:
    """Our sources for the data sets that a key of theirs names."""
    wanted = names(draft.take(key, []))
    folder = str(draft.take("dataset_dir", "data"))
    most = draft.take("max_samples")
    info = _info(draft, folder)
    found = []
    for name in wanted:
        source = _source(draft, key, name, folder, info, pretraining)
        samples = [n for n in (source.pop("num_samples", None), most) if n is not None]
        if samples:
            source["max_samples"] = min(samples)
        found.append(source)
    return found


def _info(draft: Draft, folder: str) -> Mapping[str, Any] | None:
    """The content of `dataset_info.json`; None where there is none."""
    path = Path(folder) / INFO
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping):
            raise ValueError("holds no JSON object")
    except ValueError as error:
        raise InputError(
            f"{path}: is not valid JSON ({error}); mend the file"
        ) from None
    return content


def _source(
    draft: Draft,
    key: str,
    name: str,
    folder: str,
    info: Mapping[str, Any] | None,
    pretraining: bool,
) -> dict[str, Any]:
    place = f"{key}: {name}"
    guess = {
        "path": _guess(folder, name),
        "format": "text" if pretraining else "alpaca",
    }
    if info is None:
        draft.lack(
            place,
            f"{folder}/{INFO} is not there to look it up; {guess['path']!r} is a "
            "guess: correct path and format, or give dataset_dir",
        )
        return guess
    entry = info.get(name)
    if not isinstance(entry, Mapping):
        draft.refuse(key, f"{name!r} is not in {folder}/{INFO}{suggest(name, info)}")
        return guess
    if entry.get("ranking"):
        draft.refuse(key, f"{name!r} holds preferences; {PREFERENCES}")
    unknown = sorted(set(entry) - SAID - OTHER)
    if unknown:
        draft.lack(f"{place}: {', '.join(unknown)}", "is not a key that is known")
    path = _path(draft, place, name, folder, entry)
    columns = _mapping(entry, "columns")
    read = _text if pretraining else FORMATS.get(entry.get("formatting", "alpaca"))
    if read is None:
        draft.refuse(key, f"{name!r} has the unknown format {entry['formatting']!r}")
        return guess
    for medium in MEDIA:
        if columns.get(medium):
            draft.refuse(key, f"{name!r} has {medium}; {TEXT_ONLY}")
    format_, fields = read(draft, place, columns, _mapping(entry, "tags"))
    source: dict[str, Any] = {"path": path, "format": format_}
    if fields and not path.endswith(".txt"):
        source["fields"] = fields
    if entry.get("num_samples"):
        source["num_samples"] = entry["num_samples"]
    return source


PREFERENCES = (
    "preferences are not learned here; train on the chosen answers, as an ordinary "
    "data set with stage: sft"
)
TEXT_ONLY = (
    "models here read text alone; take the text part of the data and a text model"
)


def _guess(folder: str, name: str) -> str:
    """The file that a data set of this name is probably in."""
    files = [f"{folder}/{name}{suffix}" for suffix in SUFFIXES]
    return next((file for file in files if Path(file).is_file()), files[0])


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, Mapping) else {}


def _path(
    draft: Draft, place: str, name: str, folder: str, entry: Mapping[str, Any]
) -> str:
    file, remote = entry.get("file_name"), [k for k in ELSEWHERE if entry.get(k)]
    if file and not remote:
        return f"{folder}/{file}"
    path = f"{folder}/{file or name}"
    where = f"{remote[0]} {entry[remote[0]]}" if remote else "no file_name"
    draft.lack(
        place,
        f"is not on this machine ({where}); fetch it, for instance with `hf download "
        f"--repo-type dataset`, put a json, jsonl, csv or parquet file or a folder of "
        f"them at {path!r}, or correct the path",
    )
    return path


def _text(
    draft: Draft, place: str, columns: Mapping[str, Any], tags: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    column = columns.get("prompt", "instruction")
    return "text", {} if column == "text" else {"text": column}


def _alpaca(
    draft: Draft, place: str, columns: Mapping[str, Any], tags: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    fields = {
        ours: columns[theirs]
        for theirs, (ours, usual) in ALPACA.items()
        if columns.get(theirs) not in (None, usual)
    }
    return "alpaca", fields


def _sharegpt(
    draft: Draft, place: str, columns: Mapping[str, Any], tags: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    openai = (role, content) == ("role", "content")
    usual = {
        "messages" if openai else "conversations": "conversations",
        "role" if openai else "from": "from",
        "content" if openai else "value": "value",
        "tools": "tools",
    }
    theirs = {
        "conversations": columns.get("messages", "conversations"),
        "from": role,
        "value": content,
        "tools": columns.get("tools") or "tools",
    }
    fields = {ours: theirs[key] for ours, key in usual.items() if theirs[key] != ours}
    if not openai and columns.get("system") not in (None, "system"):
        fields["system"] = columns["system"]
    for tag, known in ROLES.items():
        if tags.get(tag, known[0]) not in known:
            draft.lack(
                f"{place}: {tag}",
                f"a role {tags[tag]!r} is not read; call it {known[0]!r} in the file",
            )
    return "messages" if openai else "sharegpt", fields


FORMATS = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _sharegpt}


def weigh(draft: Draft, found: list[dict[str, Any]]) -> None:
    """Gives several sources the weights of LLaMA-Factory's way to mix them.

    There they are put one after another, so that each counts by its size, or are drawn
    from in turn, by `interleave_probs` if given. Here a weight is a share of the draws.
    """
    strategy = draft.take("mix_strategy", "concat")
    shares = _shares(draft)
    if len(found) < 2:
        return
    if strategy != "concat":
        for source, share in zip(found, shares, strict=False):
            source["weight"] = share
        return
    sizes = [_size(source) for source in found]
    if all(sizes):
        for source, size in zip(found, sizes, strict=True):
            source["weight"] = float(size)
        draft.remarks["data.train"] = ["weight: the number of examples in each source"]
    else:
        draft.lack(
            "dataset",
            "sources are drawn from equally here, whatever their sizes, and not all "
            "files are there to count; give each its number of examples as weight",
        )


def _shares(draft: Draft) -> list[float]:
    try:
        return [float(share) for share in names(draft.take("interleave_probs", []))]
    except ValueError:
        draft.refuse("interleave_probs", "must be numbers, separated by commas")
        return []


def _size(source: Mapping[str, Any]) -> int:
    """How many examples a source has; 0 where it cannot be read."""
    try:
        return len(sources.read(source["path"], source.get("max_samples")))
    except InputError:
        return 0

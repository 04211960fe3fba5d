"""LLaMA-Factory's data sets: names, looked up in `dataset_info.json`, as our sources.

The format of that file: https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.convert_config.draft import Draft, names
from jaxpeft.data import dataset_info, sources
from jaxpeft.data.dataset_info import INFO
from jaxpeft.data.sources import remote
from jaxpeft.errors import InputError, suggest

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
STRATEGIES = ("concat", "interleave_under", "interleave_over", "interleave_once")


def read_sources(draft: Draft, key: str, kind: str) -> list[dict[str, Any]]:
    """Our sources for the data sets that a key of theirs names, with their weights.

    Args:
        draft: gives their keys, and is told what has no equivalent.
        key: `dataset` or `eval_dataset`.
        kind: what the stage wants the records to be, of `dataset_info.KINDS`.

    Returns:
        The entries of `data.train` or `data.eval`, in their order.

    Raises:
        InputError: `dataset_info.json` is there and is not valid.
    """
    wanted = names(draft.take(key, []))
    folder = str(draft.take("dataset_dir", "data"))
    most = draft.whole("max_samples", 0)
    if draft.given("max_samples") and most < 1:
        draft.refuse("max_samples", "must be 1 or more")
    info = _info(folder)
    translated = []
    for name in wanted:
        source = _source(draft, key, name, folder, info, kind)
        drawn = source.get("num_samples", 0)
        if drawn:
            draft.remark(OURS[key], _DRAWN)
        if drawn or most:
            source["max_samples"] = min(n for n in (drawn, most) if n)
        translated.append(source)
    if key == "dataset":
        _weigh(draft, translated)
    return [{k: v for k, v in one.items() if k not in _ASIDE} for one in translated]


_ASIDE = ("num_samples", "size")  # of a source of theirs, no keys of ours


OURS = {"dataset": "data.train", "eval_dataset": "data.eval"}
_DRAWN = (
    "num_samples draws that many at random there, some of them again where the file "
    "has fewer; here max_samples takes the first ones, each once an epoch"
)


def _info(folder: str) -> Mapping[str, Any] | None:
    """The content of `dataset_info.json`; None where there is none."""
    path = Path(folder) / INFO
    return dataset_info.read(path) if path.is_file() else None


def _source(
    draft: Draft,
    key: str,
    name: str,
    folder: str,
    info: Mapping[str, Any] | None,
    kind: str,
) -> dict[str, Any]:
    """One data set as our source, with what weighs it beside: `_ASIDE`."""
    place = f"{key}: {name}"
    guess = {
        "path": _guess(folder, name),
        "format": "text" if kind == "text" else "alpaca",
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
    found = dataset_info.described(entry, name, folder, kind)
    source, path = {}, found.keys["path"]
    if not (entry.get("hf_hub_url") or remote.is_remote(path)):
        present, source["size"] = _content(path)
        found = dataset_info.described(entry, name, folder, kind, present)
    if found.unlike:
        draft.refuse(key, f"{name!r} {found.unlike}")
    draft.refused += [f"{place}: {problem}" for problem in found.refused]
    if found.unknown:
        draft.lack(f"{place}: {', '.join(found.unknown)}", "is not a key that is known")
    if found.absent:
        draft.lack(place, found.absent)
    for theirs, why in found.unread.items():
        draft.lack(f"{place}: {theirs}", why)
    return found.keys | source | {"num_samples": found.num_samples}


def _guess(folder: str, name: str) -> str:
    """The file that a data set of this name is probably in."""
    files = [f"{folder}/{name}{suffix}" for suffix in SUFFIXES]
    return next((file for file in files if Path(file).is_file()), files[0])


def _content(path: str) -> tuple[set[str] | None, int]:
    """The columns of a file's records and their number; (None, 0) if unreadable."""
    try:
        rows = [row.value for row in sources.read(path)]
    except InputError:
        return None, 0
    return {name for row in rows if isinstance(row, dict) for name in row}, len(rows)


def _weigh(draft: Draft, found: list[dict[str, Any]]) -> None:
    """Gives several sources the weights of LLaMA-Factory's way to mix them.

    There they are put one after another, so that each counts by its size, or are drawn
    from in turn, by `interleave_probs` if given. Here a weight is a share of the draws.
    """
    strategy = draft.choice("mix_strategy", "concat", STRATEGIES)
    shares = _shares(draft)
    if shares and strategy == "concat":
        draft.refuse("interleave_probs", "goes with a mix_strategy that interleaves")
    elif shares and len(shares) != len(found):
        draft.refuse("interleave_probs", f"must be {len(found)}, one for each data set")
    if len(found) < 2:
        return
    if strategy != "concat":
        for source, share in zip(found, shares or [1.0] * len(found), strict=False):
            source["weight"] = share
        draft.remark("data.train", _EPOCHS)
        return
    sizes = [_size(source) for source in found]
    if all(sizes):
        for source, size in zip(found, sizes, strict=True):
            source["weight"] = float(size)
        draft.remark("data.train", "weight: the number of examples in each source")
    else:
        draft.lack(
            "dataset",
            "sources are drawn from equally here, whatever their sizes, and not all "
            "files are there to count; give each its number of examples as weight",
        )


_EPOCHS = (
    "an epoch is as many draws as there are examples; there it ends when the first "
    "source (interleave_under) or the last one (interleave_over) is used up"
)


def _shares(draft: Draft) -> list[float]:
    try:
        return [float(share) for share in names(draft.take("interleave_probs", []))]
    except ValueError:
        draft.refuse("interleave_probs", "must be numbers, separated by commas")
        return []


def _size(source: Mapping[str, Any]) -> int:
    """How many examples a source has there; 0 where it cannot be read."""
    if source.get("num_samples"):
        return source["max_samples"]  # drawn again and again where there are fewer
    size = source.get("size", 0)
    return min(size, source.get("max_samples", size))

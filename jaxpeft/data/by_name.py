"""Sources that are named in a `dataset_info.json`, with what it says of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpeft import console
from jaxpeft.config import paths
from jaxpeft.data import dataset_info
from jaxpeft.data.dataset_info import INFO, Described
from jaxpeft.data.sources import found, remote, source_of
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from jaxpeft.config import DataSection, SourceSection


def looked_up(section: "DataSection", kind: str) -> "DataSection":
    """The section `data` with all sources as files, addresses or data sets of the hub.

    Args:
        section: the configuration's section `data`.
        kind: what the objective wants records to be, of `dataset_info.KINDS` all but
            "text".

    Raises:
        InputError: a name is not described, or its description cannot be followed; the
            problems of all sources are told together.
    """
    problems: list[str] = []

    def each(sources: "tuple[SourceSection, ...]") -> "tuple[SourceSection, ...]":
        done = []
        for source in sources:
            try:
                done.append(_looked_up(source, kind))
            except InputError as error:
                problems.extend(error.problems)
        return tuple(done)

    settled = {"train": each(section.train)}
    if section.eval is not None:
        settled["eval"] = each(section.eval)
    if problems:
        raise InputError(*dict.fromkeys(problems))
    if all(getattr(section, key) == value for key, value in settled.items()):
        return section
    return section.model_copy(update=settled)


def _looked_up(source: "SourceSection", kind: str) -> "SourceSection":
    info = _info(source)
    if info is None:
        return source
    path, content = info
    known = dataset_info.names(content)
    if source.name is None:
        raise InputError(
            f"{source.path}: describes {len(known)} data sets; set name to one of "
            f"them: {dataset_info.nearest(None, known)}"
        )
    entry = content.get(source.name)
    if not isinstance(entry, Mapping):
        raise InputError(
            f"{path}: describes no data set {source.name!r}; there are, the nearest "
            f"first, {dataset_info.nearest(source.name, known)}"
        )
    place = f"{path}, {source.name}"
    keys = _keys(source, entry, path, place, kind)
    looked_up = source.model_copy(update=keys)
    try:
        found(source_of(looked_up))
    except InputError as error:
        raise InputError(*(f"{place}: {p}" for p in error.problems)) from error
    return looked_up


def _info(source: "SourceSection") -> tuple[Path, Mapping[str, Any]] | None:
    """The file that describes a source and its content; None: the source is no such."""
    if remote.is_remote(source.path):
        return None
    path = paths.find(source.path)
    inside = path if path.name == INFO else path / INFO
    if not inside.is_file():
        return None
    content = dataset_info.read(inside)
    if dataset_info.names(content):
        return inside, content
    if inside != path:  # another program's file of that name
        return None
    raise InputError(
        f"{path}: describes no data sets; write NAME: {{file_name: FILE}} for each, as "
        "LLaMA-Factory has them, or give the data file itself as path"
    )


def _keys(
    source: "SourceSection",
    entry: Mapping[str, Any],
    path: Path,
    place: str,
    kind: str,
) -> dict[str, Any]:
    """What the description says, under what the configuration says itself."""
    name = str(source.name)
    is_text = source.format == "text" or (
        source.format == "alpaca" and dataset_info.is_text(entry)
    )
    wanted = "text" if kind == "answers" and is_text else kind
    described = dataset_info.described(entry, name, str(path.parent), wanted)
    own = described.keys
    problems = [described.unlike] if described.unlike else _unusable(described)
    if source.format not in ("alpaca", own["format"]):
        problems.append(
            f"has format {own['format']}, and data.train or data.eval says "
            f"{source.format}; leave format out"
        )
    if problems:
        raise InputError(*(f"{place}: {problem}" for problem in problems))
    if described.unknown:
        console.remark(dataset_info.unknown(place, described.unknown))
    if described.num_samples:
        console.remark(
            f"{place}: num_samples draws that many at random in LLaMA-Factory; here "
            f"the first {described.num_samples} are used"
        )
    fields = {**own.get("fields", {}), **(source.fields or {})}
    most = [n for n in (source.max_samples, described.num_samples) if n]
    return {
        "path": own["path"],
        "name": own.get("name"),
        "split": source.split or own.get("split"),
        "revision": source.revision or own.get("revision"),
        "data_dir": source.data_dir or own.get("data_dir"),
        "format": own["format"],
        "fields": fields or None,
        "max_samples": min(most, default=None),
    }


def _unusable(described: Described) -> list[str]:
    """What prevents that a data set is read as it is described."""
    problems = [described.absent] if described.absent else []
    problems += described.refused
    return problems + [f"{key}: {why}" for key, why in described.unread.items()]

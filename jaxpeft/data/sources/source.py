"""What a source is, as the configuration names it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxpeft.config import SourceSection

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Source(NamedTuple):
    """Where records come from.

    Attributes:
        path: a file, a folder, a pattern such as `data/*.jsonl`, an address such as
            `s3://bucket/train.jsonl`, or the hub id of a data set; or `jaxpeft:` and
            the name of a file or folder that ships.
        name: which of the data set's configurations; None: the only one.
        split: the rows of the data set, such as `train[:5%]`; None: `train`.
        revision: a commit, tag or branch of the hub's; None: the newest.
        data_dir: the folder of the data set that is read alone; None: all of it.
    """

    path: str
    name: str | None = None
    split: str | None = None
    revision: str | None = None
    data_dir: str | None = None

    def __str__(self) -> str:
        """The source as messages name it."""
        given = [("name", self.name), ("data_dir", self.data_dir)]
        given.append(("split", self.split))
        return self.path + "".join(f", {key} {value}" for key, value in given if value)


def source_of(section: "SourceSection") -> Source:
    """The source that a section of the configuration names.

    Args:
        section: an entry of `data.train` or `data.eval`.
    """
    keys = (section.name, section.split, section.revision, section.data_dir)
    return Source(section.path, *keys)


def may_be_hub_id(path: str) -> bool:
    """Whether a path that does not exist can be the id of a data set on the hub.

    `data/mine` where there is a folder data is a mistyped path.

    Args:
        path: what was given.
    """
    return bool(_REPOSITORY.fullmatch(path)) and not Path(path).parent.is_dir()

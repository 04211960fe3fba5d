"""Commands go no further than the folders that were named: no link of a run leads out.

The pages open no link at all. A command that is started about a run reads and writes
its whole folder, and would follow what an archive has put there: `adapter` that is a
link to somebody's keys, `checkpoints` that is one to a folder to be overwritten.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxpeft.board import inside
from jaxpeft.errors import InputError
from jaxpeft.rundir.sweep_files import SWEEP

MOST = 200_000  # files and folders of a run that are looked at
NAMED = 5  # links that a complaint names


def check(run: Path, tops: Sequence[Path]) -> None:
    """Refuses a run or a sweep from which anything leads out.

    Args:
        run: its directory, which need not exist.
        tops: the folders that were named at start.

    Raises:
        InputError: a link in it, or in what a link leads to, leads out of `tops`; its
            `sweep.json` names a folder that is not within it; or it is too large.
    """
    wrong = [
        f"{inside.shown(link)} is a link to {inside.shown(target)}, which is in none "
        "of the folders that --runs names; name that one, too, or remove the link"
        for link, target in _ways_out(run, tops)
    ]
    wrong += [
        f"{SWEEP} names {inside.shown(place)!r} as the folder of a point, which is not "
        "within the sweep; remove that entry"
        for place in _strange_points(run)
    ]
    if wrong:
        more = [f"and {len(wrong) - NAMED} more"] if len(wrong) > NAMED else []
        raise InputError(*wrong[:NAMED], *more)


def is_within(path: str | Path, tops: Sequence[Path]) -> bool:
    """Whether a path leads to one of some folders or below it, links followed.

    Args:
        path: which need not exist.
        tops: folders, links in their own paths followed.
    """
    try:
        place = Path(os.path.realpath(path))
    except ValueError:
        return False
    return any(top == place or top in place.parents for top in tops)


def _ways_out(run: Path, tops: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(link, where it leads) of the links of a run that lead out."""
    if not is_within(run, tops):
        yield str(run), os.path.realpath(run)
        return
    todo, seen, count = [os.path.realpath(run)], set(), 0
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        for entry in _entries(at):
            count += 1
            if count > MOST:
                raise InputError(
                    f"{inside.shown(run)}: has more than {MOST:,} files, too many to "
                    "see where each leads; run the command by hand"
                )
            if not entry.is_symlink():
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                continue
            target = os.path.realpath(entry.path)
            if not is_within(target, tops):
                yield entry.path, target
            elif os.path.isdir(target):
                todo.append(target)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []  # who runs the command cannot read it either


def _strange_points(run: Path) -> Iterator[str]:
    """The folders of points, as `sweep.json` has them, that are not below it."""
    rows: Any = inside.json_object(run, SWEEP).get("points")
    for row in rows if isinstance(rows, list) else ():
        place = row.get("directory") if isinstance(row, dict) else None
        if isinstance(place, str):
            path = Path(place)
            if path.is_absolute() or ".." in path.parts or "\0" in place:
                yield place

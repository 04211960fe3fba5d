"""Where runs and sweeps are beneath some folders, found again as they come and go.

A folder whose time of change is the same has the same folders in it, so that looking
again costs a question for each, and no reading.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from jaxpeft.rundir.files import ADAPTER, CONFIG, METRICS, MODEL, PREDICTIONS
from jaxpeft.rundir.sweep_files import SWEEP

DEEPEST = 6  # folders below the one that was named
MOST = 20_000  # folders that are looked at
POINTS = "points"
# What a run has within it that is none itself.
OWN = {ADAPTER, MODEL, PREDICTIONS, "checkpoints", "tensorboard"}


@dataclass
class Place:
    """The directory of a run or a sweep.

    Attributes:
        key: a name of it that can stand in an address.
        folder: the directory.
        name: its path from the folder that was named.
        is_sweep: whether it is one of a sweep.
        sweep: the key of the sweep whose point it is; "" for any other.
    """

    key: str
    folder: Path
    name: str
    is_sweep: bool
    sweep: str = ""


@dataclass
class _Seen:
    """A folder as it was last looked into."""

    changed: int = -1
    below: list[str] = field(default_factory=list)
    kind: str = ""
    place: Place | None = None


class Folders:
    """The runs and sweeps beneath some folders.

    Links are not followed, hidden folders not looked into, nor those of a run.

    Args:
        tops: the folders.

    Attributes:
        tops: their absolute paths.
        complaints: what could not be looked into, a sentence each.
    """

    def __init__(self, tops: list[Path]):
        self.tops = [Path(os.path.realpath(top)) for top in tops]
        self.complaints: list[str] = []
        self._seen: dict[str, _Seen] = {}

    def find(self) -> dict[str, Place]:
        """{key: place} of all there are now."""
        found: dict[str, Place] = {}
        self.complaints = []
        known, self._seen = self._seen, {}
        for number, top in enumerate(self.tops):
            prefix = f"{top.name}/" if len(self.tops) > 1 else ""
            todo = [(str(top), "", 0, "")]
            while todo and len(self._seen) < MOST:
                path, name, depth, sweep = todo.pop()
                seen = self._look(path, known, is_top=depth == 0)
                if seen is None:
                    continue
                if seen.kind:
                    if seen.place is None or seen.place.sweep != sweep:
                        key, is_sweep = _key(number, name), seen.kind == SWEEP
                        shown = prefix + name if name else top.name
                        seen.place = Place(key, Path(path), shown, is_sweep, sweep)
                    found[seen.place.key] = seen.place
                    sweep = seen.place.key if seen.place.is_sweep else ""
                if depth < DEEPEST:
                    start = f"{name}/" if name else ""
                    todo += [
                        (f"{path}/{own}", start + own, depth + 1, sweep)
                        for own in seen.below
                    ]
            if len(self._seen) >= MOST:
                self.complaints.append(
                    f"only the first {MOST:,} folders are looked at; name a smaller one"
                )
        return found

    def _look(self, path: str, known: dict[str, _Seen], is_top: bool) -> _Seen | None:
        """What is in a folder; None where it is gone."""
        try:
            changed = os.stat(path, follow_symlinks=False).st_mtime_ns
            seen = known.get(path)
            if seen is None or seen.changed != changed:
                seen = _into(path, changed, is_top)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.complaints.append(f"{path}: cannot be read ({error.strerror})")
            seen = _Seen()
        self._seen[path] = seen
        return seen


def _into(path: str, changed: int, is_top: bool) -> _Seen:
    """What is in a folder; a run is not looked into, unless it was named itself.

    Then what lies there may as well be a configuration above all runs.
    """
    with os.scandir(path) as entries:
        kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    below = sorted(n for n, is_dir in kinds.items() if is_dir and n[:1] != ".")
    if SWEEP in kinds:
        return _Seen(changed, [n for n in below if n == POINTS], SWEEP)
    if CONFIG in kinds or METRICS in kinds:
        return _Seen(changed, [n for n in below if is_top and n not in OWN], CONFIG)
    return _Seen(changed, below)


def _key(number: int, name: str) -> str:
    digest = hashlib.blake2b(os.fsencode(f"{number}/{name}"), digest_size=8)
    return digest.hexdigest()

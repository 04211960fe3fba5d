"""All runs and sweeps beneath some folders as they stand now, kept by what changed.

Nothing is read twice: what a file says is kept with its size and times, and only a file
whose size or time is another is opened. Nothing is looked at unless somebody asks.
"""

import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft.board import inside, life, motion
from jaxpeft.board.figures import Figures, glance, resident
from jaxpeft.board.folders import Folders, Place
from jaxpeft.board.tail import Tail, is_number
from jaxpeft.rundir.files import CONFIG, METRICS, SUMMARY
from jaxpeft.rundir.lock import ENDED
from jaxpeft.rundir.sweep_files import SWEEP

FAULT = "."  # stands for all files in `Entry.faults`
OLD = 0.8  # seconds after which what is known is looked after again
Stamp = tuple[int, int, int]


@dataclass
class Entry:
    """A run or a sweep as it was last read.

    Attributes:
        place: where it is.
        version: a number that is another after each change.
        state: one of `life.STATES`.
        why: what there is to say of that.
        held: the process that writes it, or was killed while it did.
        settings: see `figures.glance`.
        figures: its numbers.
        summary: its `summary.json`.
        ended: its `.ended`.
        sweep: its `sweep.json`.
        memory: bytes, of the process now or the most of the run; None: not known.
        heard: when the board last had a sign of its process, where that is on another
            host, in seconds since the epoch.
        changed: when it last changed, in seconds since the epoch.
        latest: the same, where a change of a sweep's point is one of the sweep.
        title: what its sweep calls it, where it is a point of one.
        faults: what could not be read, a sentence each.
    """

    place: Place
    version: int = 0
    state: str = life.WAITING
    why: str = ""
    held: life.Holder | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    summary: dict[str, Any] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    memory: int | None = None
    heard: float | None = None
    changed: float = 0.0
    latest: float = 0.0
    title: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    _stamps: dict[str, Stamp | None] = field(default_factory=dict)
    _tail: Tail | None = None
    _lines: motion.Motion | None = None  # of its metrics

    def read(self, now: float, tick: float) -> bool:
        """Reads what has changed, but for the state; whether that was looked at.

        Args:
            now: seconds since the epoch.
            tick: by the monotonic clock.
        """
        folder = self.place.folder
        whole, grown = self._has_changed("."), self._has_changed(METRICS)
        if self.held is None and not whole and not grown:
            return False  # files that come, go or are replaced change the folder
        self.faults.pop(FAULT, None)
        if self._has_changed(SUMMARY):
            self.summary = inside.json_object(folder, SUMMARY)
            self._complain(SUMMARY, self._stamps[SUMMARY] and not self.summary)
        if self._has_changed(ENDED):
            self.ended = inside.json_object(folder, ENDED)
        if self.place.is_sweep:
            if self._has_changed(SWEEP):
                self.sweep = inside.json_object(folder, SWEEP)
                self._complain(SWEEP, not self.sweep)
        else:
            if self._has_changed(CONFIG):
                self._read_config()
            if grown:
                self._read_metrics()
        try:
            self.held = life.holder(folder, now, tick, self.held)
        except OSError as error:
            self.held = None
            self.why = f"the lock file cannot be read ({error.strerror})"
        names = (CONFIG, METRICS, SUMMARY, SWEEP, ENDED)
        found = (self._stamps.get(name) for name in names)
        stamps = [stamp[0] / 1e9 for stamp in found if stamp]
        self.changed = max(stamps, default=0.0)
        return True

    def _has_changed(self, name: str) -> bool:
        try:
            found = os.stat(f"{self.place.folder}/{name}", follow_symlinks=False)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = None
        changed = name not in self._stamps or self._stamps[name] != stamp
        self._stamps[name] = stamp
        return changed

    def _complain(self, name: str, wrong: object) -> None:
        self.faults.pop(name, None)
        if wrong:
            self.faults[name] = f"{name} cannot be read, or holds nothing of use"

    def _read_config(self) -> None:
        self.faults.pop(CONFIG, None)
        try:
            self.settings = glance(inside.text(self.place.folder, CONFIG, 10**6))
            self._complain(CONFIG, not self.settings)
        except FileNotFoundError:
            self.settings = {}
        except OSError as error:
            self.settings = {}
            self.faults[CONFIG] = f"{CONFIG} cannot be read ({error.strerror})"

    def _read_metrics(self) -> None:
        self.faults.pop(METRICS, None)
        if self._tail is None:
            self._tail = Tail(self.place.folder, whole=False)
        try:
            lines = self._tail.more()
        except OSError as error:
            self.faults[METRICS] = f"{METRICS} cannot be read ({error.strerror})"
            return
        if self._tail.fresh:
            self.figures = Figures()
        self.figures.add(lines)
        if self._tail.bad:
            many = self._tail.bad > 1
            self.faults[METRICS] = f"{METRICS}: {self._tail.bad} of its last lines " + (
                "are no objects with a step" if many else "is no object with a step"
            )

    def fail(self, error: Exception) -> None:
        """Says that it cannot be read, and reads all of it again the next time."""
        self._stamps.clear()
        self._tail = None
        self.faults[FAULT] = f"cannot be read: {error!r}"

    def judge(self, sweep: "Entry | None", now: float, tick: float) -> None:
        """Says in which state it is.

        Args:
            sweep: the sweep that it is a point of, which has been read.
            now: seconds since the epoch.
            tick: by the monotonic clock.
        """
        stamp, lines = self._stamps.get(METRICS), self._lines
        self._lines = stamp and motion.seen(stamp[0] / 1e9, tick, lines)
        about = {
            "begun": bool(self.figures.training or self.figures.evaluation),
            "last": self._lines,
            "every": self.figures.seconds_a_line,
            "now": now,
            "tick": tick,
        }
        if self.place.is_sweep:
            self.state, self.why = self._of_sweep(now, tick)
        elif sweep is not None and self.held is None and (row := _row(sweep, self)):
            self.title = str(row.get("name", ""))
            self.state, self.why = life.of_point(row, sweep.held, sweep.ended, **about)
        else:
            self.state, self.why = life.of_run(
                self.held, summary=self.summary, ended=self.ended, **about
            )
        held = self.held
        peak = self.summary.get("peak_memory_bytes")
        self.memory = int(peak) if is_number(peak) else None
        self.heard = None
        if held is not None and held.alive and not held.is_here:
            self.heard = now - held.quiet
        if held is not None and held.alive and held.is_here:
            self.memory = resident(held.pid or 0)

    def _of_sweep(self, now: float, tick: float) -> tuple[str, str]:
        done, total = self.points
        about = {"begun": True, "last": None, "every": None, "now": now, "tick": tick}
        if self.held is None and not self.ended and done == total > 0:
            return life.FINISHED, ""
        return life.of_run(self.held, summary={}, ended=self.ended, **about)

    @property
    def points(self) -> tuple[int, int]:
        """(points that have ended, all) of a sweep."""
        found = self.sweep.get("points")
        rows = found if isinstance(found, list) else []
        rows = [row for row in rows if isinstance(row, dict)]
        left = sum(row.get("status") in (life.WAITING, life.RUNNING) for row in rows)
        return len(rows) - left, len(rows)

    def seen(self) -> tuple:
        """What a change of is worth telling."""
        held = self.held
        process = held and (held.alive, held.is_sure, held.beat.at if self.heard else 0)
        return (
            *(self.state, self.why, self.title, process),
            *(sorted(self.faults.values()), tuple(self._stamps.items())),
        )


def _row(sweep: Entry, point: Entry) -> dict[str, Any]:
    """The entry of a point in its sweep's `sweep.json`."""
    directory = point.place.folder.relative_to(sweep.place.folder).as_posix()
    rows = sweep.sweep.get("points")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("directory") == directory:
            return row
    return {}


class Catalog:
    """The runs and sweeps beneath some folders.

    Args:
        tops: the folders.

    Attributes:
        folders: finds them.
        entries: key -> what is known of it.
        read_at: when they were last looked at, in seconds since the epoch.
        epoch: another for each catalog: versions of different ones do not compare.
        version: the highest that an entry has.
    """

    def __init__(self, tops: list[Path]):
        self.folders = Folders(tops)
        self.entries: dict[str, Entry] = {}
        self.read_at = 0.0
        self.epoch = secrets.token_hex(4)
        self.version = 0
        self._known = self.entries, self.version
        self._turn = threading.Lock()

    def refresh(self) -> dict[str, Entry]:
        """Looks at all, unless that was just done; from any thread.

        Returns:
            `entries`, a mapping that does not change any more.
        """
        return self.latest()[0]

    def latest(self) -> tuple[dict[str, Entry], int]:
        """Likewise; (`entries`, the version that belongs to them).

        An entry that changes later has a higher one, also where that is seen at once.
        While one thread looks, others are told what was there before, unless that was
        nothing: a disk that answers slowly holds up no page.
        """
        if self._turn.acquire(blocking=not self.read_at):
            try:
                now = time.time()
                if not 0 <= now - self.read_at < OLD:
                    self._refresh(now)
                    self._known = self.entries, self.version
                    self.read_at = time.time()
            finally:
                self._turn.release()
        return self._known

    def _refresh(self, now: float) -> None:
        tick = time.monotonic()
        places = self.folders.find()
        entries = {}
        for key, place in places.items():
            entry = self.entries.get(key)
            if entry is None or entry.place.is_sweep != place.is_sweep:
                entry = Entry(place)
            entry.place = place
            entries[key] = entry
        for entry in entries.values():
            moves = entry.held or entry.place.sweep or FAULT in entry.faults
            before = entry.seen() if moves else None
            try:
                if not entry.read(now, tick) and before is None and entry.version:
                    continue
                entry.judge(entries.get(entry.place.sweep), now, tick)
            except Exception as error:  # noqa: BLE001
                # One run must not hide all others.
                entry.fail(error)
            if entry.seen() != before or not entry.version:
                self.version += 1
                entry.version = self.version
        self._date(entries)
        self.entries = entries

    def _date(self, entries: dict[str, Entry]) -> None:
        """Says when each last changed: a sweep does with each of its points."""
        latest = {key: entry.changed for key, entry in entries.items()}
        for entry in entries.values():
            if (sweep := entry.place.sweep) in latest:
                latest[sweep] = max(latest[sweep], entry.changed)
        for key, entry in entries.items():
            if entry.place.is_sweep and entry.latest != latest[key]:
                self.version += 1
                entry.version = self.version
            entry.latest = latest[key]

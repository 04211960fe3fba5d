"""How long ago a time was renewed, by the clock of whoever watches it alone.

The times of files are by the clock of the disk's host, which may be another one than
this machine's. That a time has moved on needs no clock but one's own to be seen.
"""

from typing import NamedTuple

GAP = 40.0  # seconds between two looks, after which nobody can say when it moved


class Motion(NamedTuple):
    """A time of a file, as it was watched.

    Attributes:
        value: the time, in seconds by whatever clock.
        at: when it was first seen to be that, by the monotonic clock.
        looked: when it was last looked at, likewise.
        moved: whether it was seen to move on to that, and not only found so.
    """

    value: float
    at: float
    looked: float
    moved: bool = False

    def age(self, now: float, tick: float) -> float:
        """The seconds since it moved, or, where that was not seen, by this clock.

        Args:
            now: seconds since the epoch.
            tick: by the monotonic clock.
        """
        own = tick - self.at
        return own if self.moved else max(own, now - self.value)


def seen(value: float, tick: float, before: Motion | None) -> Motion:
    """A time that is looked at again.

    Args:
        value: the time.
        tick: by the monotonic clock.
        before: how it was watched until now; None: it was not.
    """
    if before is not None and value == before.value:
        return before._replace(looked=tick)
    moved = before is not None and value > before.value
    moved = moved and before is not None and tick - before.looked <= GAP
    return Motion(value, tick, tick, moved)

"""The time that steps wait for their batches, and a word where it is too much."""

from collections.abc import Callable

MUCH = 0.05  # of the time
SURE = 10.0  # seconds of training after which the share says something


class Waits:
    """Adds up what steps wait for their batches, and says once that it is much.

    Args:
        note: is told.
    """

    def __init__(self, note: Callable[[str], None]):
        self._note = note
        self._waited = self._seconds = 0.0
        self._told = False

    def see(self, waited: float, seconds: float) -> None:
        """Takes in some steps.

        Args:
            waited: seconds for which they waited for their batches.
            seconds: that they took.
        """
        self._waited += waited
        self._seconds += seconds
        share = self._waited / max(self._seconds, 1e-9)
        if self._told or self._seconds < SURE or share <= MUCH:
            return
        self._told = True
        self._note(
            f"the steps wait for their batches {share:.0%} of the time: the cores of "
            "this machine, or the disk that the examples lie on, are too slow beside "
            "its devices; leave a core to the data, or set data.cache_dir to a folder "
            "on a faster disk"
        )

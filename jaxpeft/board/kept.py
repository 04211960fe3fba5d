"""Answers that take work: made once for all who ask, a few at a time, and kept.

A page that is opened in ten tabs, or asked for a thousand times, costs what one costs.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any

from starlette.exceptions import HTTPException

BUSY = "The board is at work on too much already; ask again in a while."


class Kept:
    """What was made last, by keys.

    Args:
        places: how many answers are made at a time.
        waiting: how many there may be under way, those that wait for a place included.
        most: how many are kept.
    """

    def __init__(self, places: int, waiting: int, most: int):
        self._places = asyncio.Semaphore(places)
        self._waiting, self._most = waiting, most
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._under_way: dict[Hashable, asyncio.Task] = {}

    async def in_thread(
        self, key: Hashable, seconds: float, make: Callable[..., Any], *given: Any
    ) -> Any:
        """The same of a function that is called in a thread.

        Args:
            key: what it is an answer to.
            seconds: for how long one that is there will do.
            make: the function.
            given: its arguments.

        Raises:
            HTTPException: too many are under way.
        """
        return await self.get(key, seconds, lambda: asyncio.to_thread(make, *given))

    async def get(
        self, key: Hashable, seconds: float, make: Callable[[], Awaitable[Any]]
    ) -> Any:
        """The answer of a key; what `make` raises where that fails.

        Args:
            key: what it is an answer to.
            seconds: for how long one that is there will do; 0: none is kept.
            make: makes it, where it is not there yet.

        Raises:
            HTTPException: too many are under way.
        """
        when, answer = self._answers.get(key, (0.0, None))
        if when and time.monotonic() - when < seconds:
            self._answers.move_to_end(key)
            return answer
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= self._waiting:
                raise HTTPException(503, BUSY)
            task = asyncio.create_task(self._made(key, seconds, make))
            task.add_done_callback(_heard)
            self._under_way[key] = task
        # Who asked may leave; the others, and whoever asks next, still want it.
        return await asyncio.shield(task)

    async def _made(
        self, key: Hashable, seconds: float, make: Callable[[], Awaitable[Any]]
    ) -> Any:
        try:
            async with self._places:
                answer = await make()
            if seconds:
                self._answers[key] = (time.monotonic(), answer)
                self._answers.move_to_end(key)
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
            return answer
        finally:
            self._under_way.pop(key, None)


def _heard(task: asyncio.Task) -> None:
    """Nobody is left to tell what went wrong, and asyncio would complain of that."""
    if not task.cancelled():
        task.exception()

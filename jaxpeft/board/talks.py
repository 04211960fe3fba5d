"""The models that are being talked with: a process each, let go when nobody asks."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from jaxpeft.board.processes import TOKEN, python
from jaxpeft.board.talk import LOADING

IDLE = 600.0  # seconds without a question after which a model is let go
MOST = 2  # models at a time
LINE = 2**20  # bytes of a part of an answer
PATIENCE = 5.0  # seconds that a process has to end
ENDED = "the process of the model has ended; talk.log beside the jobs has its words"
FULL = f"{MOST} models answer already; stop one of them, or wait until it has answered"
Told = dict[str, Any]
Parts = AsyncGenerator[Told, None]


class Talk:
    """A process with a model.

    Requests are numbered, and a part of an answer says to which it belongs: what is
    left of one that nobody reads on never begins the next.

    Args:
        folder: the run's directory.
        base: whether the model is the one that the run began with.
        log: where it says what is no answer.
        work: the folder in which it starts.

    Attributes:
        used: when it was last asked, by the monotonic clock.
        asking: how many ask it now, or wait until they may.
    """

    def __init__(self, folder: Path, base: bool, log: Path, work: Path):
        self._first = {"run": str(folder), "base": base, "number": LOADING}
        self._log, self._work = log, work
        self._process: asyncio.subprocess.Process | None = None
        self._number = LOADING
        self._busy = asyncio.Lock()
        # Who leaves has been cancelled, and could wait for nothing: this task does.
        self._leaving: asyncio.Task | None = None
        self.used = time.monotonic()
        self.asking = 0

    async def ask(self, request: Told) -> Parts:
        """The parts of an answer, as they come.

        If it is left before its end the process is told to stop, or ended where it
        still loads.

        Args:
            request: see `talk`.
        """
        self.asking += 1
        try:
            async with self._busy:
                await self._left()
                async with contextlib.aclosing(self._answer(request)) as parts:
                    async for part in parts:
                        yield part
        finally:
            self.asking -= 1

    async def _answer(self, request: Told) -> Parts:
        self.used = time.monotonic()
        self._number += 1
        lives = done = False
        try:
            if self._process is None or self._process.returncode is not None:
                yield {"status": "loading the model"}
                self._process = await self._begun(request)
                told = await _hear(self._process, LOADING)
                if "ready" not in told:
                    yield told
                    return
            lives = True
            process = self._process
            await _say(process, {**request, "number": self._number})
            while not done:
                told = await _hear(process, self._number)
                done = "piece" not in told
                lives = told.get("error") != ENDED
                yield told
        finally:
            if not lives:
                self._leaving = asyncio.create_task(self._end())
            elif not done:
                self._leaving = asyncio.create_task(self._stop(self._number))
            self.used = time.monotonic()

    async def _left(self) -> None:
        """Waits for who left before; the waiting may be cancelled, that may not."""
        while self._leaving is not None and not self._leaving.done():
            await asyncio.wait([self._leaving])

    async def _begun(self, request: Told) -> asyncio.subprocess.Process:
        """The process; what it is asked is checked before it loads anything."""
        environment = {k: v for k, v in os.environ.items() if k != TOKEN}
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *python("jaxpeft.board"),
                "--talk",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self._work,
                env=environment,
                limit=LINE,
                start_new_session=True,
            )
        self._process = process
        await _say(process, {**request, **self._first})
        return process

    async def _stop(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        await _say(process, {"stop": number})
        try:
            async with asyncio.timeout(PATIENCE):
                while "piece" in await _hear(process, number):
                    pass
        except TimeoutError:
            await self._end()

    async def close(self) -> None:
        """Lets the model go."""
        await self._left()
        self._leaving = asyncio.create_task(self._end())
        await self._left()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(PATIENCE):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _say(process: asyncio.subprocess.Process, request: Told) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended: `_hear` says so
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()


async def _hear(process: asyncio.subprocess.Process, number: int) -> Told:
    """The next part of the answer to a request; those of others are dropped."""
    assert process.stdout is not None
    while True:
        try:
            told = json.loads(await process.stdout.readline())
        except ValueError:
            return {"error": ENDED}
        if told.pop("number", None) == number:
            return told


class Talks:
    """The models that are loaded, at most so many at a time.

    Args:
        folder: of the board's own files.
        work: the folder in which processes start.
    """

    def __init__(self, folder: Path, work: Path):
        self._log, self._work = folder / "talk.log", work
        self._talks: dict[tuple[Path, bool], Talk] = {}
        self._room = asyncio.Lock()  # held while a model comes or goes
        self._letting_go: asyncio.Task | None = None

    async def ask(self, folder: Path, base: bool, request: Told) -> Parts:
        """The parts of an answer of a run's model.

        Args:
            folder: the run's directory.
            base: whether the model that it began with is to answer.
            request: see `talk`.
        """
        key = (folder, base)
        async with self._room:
            one = self._talks.get(key)
            if one is None and await self._has_room():
                one = self._talks[key] = Talk(folder, base, self._log, self._work)
        if one is None:
            yield {"error": FULL}
            return
        if self._letting_go is None or self._letting_go.done():
            self._letting_go = asyncio.create_task(self._let_go())
        async with contextlib.aclosing(one.ask(request)) as parts:
            async for part in parts:
                yield part

    async def _has_room(self) -> bool:
        """Lets go of the models that were asked longest ago, until there is room."""
        while len(self._talks) >= MOST:
            idle = [key for key, one in self._talks.items() if not one.asking]
            if not idle:
                return False
            oldest = min(idle, key=lambda key: self._talks[key].used)
            await self._talks.pop(oldest).close()
        return True

    async def _let_go(self) -> None:
        """Lets go of models that nobody has asked for long, until there are none."""
        while self._talks:
            await asyncio.sleep(IDLE / 20)
            now = time.monotonic()
            async with self._room:
                for key, one in list(self._talks.items()):
                    if now - one.used > IDLE and not one.asking:
                        del self._talks[key]
                        await one.close()

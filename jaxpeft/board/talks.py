"""The models that are being talked with: a process each, let go when nobody asks."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from jaxpeft.board.processes import TOKEN

IDLE = 600.0  # seconds without a question after which a model is let go
MOST = 2  # models at a time
LINE = 2**20  # bytes of a part of an answer
PATIENCE = 5.0  # seconds that a process has to end
ENDED = "the process of the model has ended; what it said is in .board/talk.log"
Told = dict[str, Any]
Parts = AsyncGenerator[Told, None]


class Talk:
    """A process with a model.

    Args:
        folder: the run's directory.
        base: whether the model is the one that the run began with.
        log: where it says what is no answer.
        work: the folder in which it starts.

    Attributes:
        used: when it was last asked, by the monotonic clock.
        busy: held while it answers.
    """

    def __init__(self, folder: Path, base: bool, log: Path, work: Path):
        self._first = {"run": str(folder), "base": base}
        self._log, self._work = log, work
        self._process: asyncio.subprocess.Process | None = None
        self.used = time.monotonic()
        self.busy = asyncio.Lock()

    async def ask(self, request: Told) -> Parts:
        """The parts of an answer, as they come.

        If it is left before its end the process is told to stop.

        Args:
            request: see `talk`.
        """
        async with self.busy:
            self.used = time.monotonic()
            if self._process is None or self._process.returncode is not None:
                yield {"status": "loading the model"}
                self._process = await self._begun()
                told = await self._hear()
                if "ready" not in told:
                    yield told
                    await self.close()
                    return
            done = False
            try:
                await self._say(request)
                while True:
                    told = await self._hear()
                    done = "piece" not in told
                    if told.get("error") == ENDED:
                        await self.close()
                    yield told
                    if done:
                        break
            finally:
                if not done:
                    # Nobody reads on: the rest of the answer must not begin the next.
                    await asyncio.shield(self._stop())
                self.used = time.monotonic()

    async def _begun(self) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if k != TOKEN}
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "jaxpeft.board", "--talk"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self._work,
                env=environment,
                limit=LINE,
                start_new_session=True,
            )
        self._process = process
        await self._say(self._first)
        return process

    async def _say(self, request: Told) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: `_hear` says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()

    async def _hear(self) -> Told:
        assert self._process is not None and self._process.stdout is not None
        try:
            return json.loads(await self._process.stdout.readline())
        except ValueError:
            return {"error": ENDED}

    async def _stop(self) -> None:
        await self._say({"stop": True})
        try:
            async with asyncio.timeout(PATIENCE):
                while "piece" in await self._hear():
                    pass
        except TimeoutError:
            await self.close()

    async def close(self) -> None:
        """Lets the model go."""
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


class Talks:
    """The models that are loaded, at most so many at a time.

    Args:
        folder: of the board's own files.
        work: the folder in which processes start.
    """

    def __init__(self, folder: Path, work: Path):
        self._log, self._work = folder / "talk.log", work
        self._talks: dict[tuple[Path, bool], Talk] = {}
        self._letting_go: asyncio.Task | None = None

    async def ask(self, folder: Path, base: bool, request: Told) -> Parts:
        """The parts of an answer of a run's model.

        Args:
            folder: the run's directory.
            base: whether the model that it began with is to answer.
            request: see `talk`.
        """
        key = (folder, base)
        if key not in self._talks:
            await self._make_room()
            self._talks[key] = Talk(folder, base, self._log, self._work)
        if self._letting_go is None or self._letting_go.done():
            self._letting_go = asyncio.create_task(self._let_go())
        async with contextlib.aclosing(self._talks[key].ask(request)) as parts:
            async for part in parts:
                yield part

    async def _make_room(self) -> None:
        idle = [key for key, one in self._talks.items() if not one.busy.locked()]
        idle.sort(key=lambda key: self._talks[key].used)
        while len(self._talks) >= MOST and idle:
            await self._talks.pop(idle.pop(0)).close()

    async def _let_go(self) -> None:
        """Lets go of models that nobody has asked for long, until there are none."""
        while self._talks:
            await asyncio.sleep(IDLE / 20)
            now = time.monotonic()
            for key, one in list(self._talks.items()):
                if now - one.used > IDLE and not one.busy.locked():
                    del self._talks[key]
                    await one.close()

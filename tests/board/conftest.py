"""Folders of runs in every state, and a board over them that is asked in process."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jaxpeft.board import shared
from jaxpeft.board.application import application
from jaxpeft.board.catalog import Catalog
from jaxpeft.board.jobs import Queue

TOKEN = "a-token-of-the-test"
HOST = "127.0.0.1:8470"
CONFIG = """output_dir: runs/one
seed: 1
model:
  path: jaxpeft:tiny-llama
  quantization: none
adapter:
  method: lora
  r: 16
objective:
  name: sft
data:
  train:
  - path: jaxpeft:weather/train.json
    name: null
    format: alpaca
  eval: null
optimizer:
  name: adamw
  learning_rate: 0.01
training:
  max_steps: 40
  num_epochs: null
"""


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory, monkeypatch) -> Path:
    """Where boards keep their jobs: nothing of the user's own is read or added to."""
    home = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    return home


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run(name, steps=, summary=, lock=, ended=): a run's directory."""

    def make(
        name: str,
        steps: int = 20,
        summary: dict | None = None,
        lock: dict | None = None,
        ended: dict | None = None,
        config: str = CONFIG,
    ) -> Path:
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        run.joinpath("config.yaml").write_text(config)
        lines = [line(step) for step in range(1, steps + 1)]
        run.joinpath("metrics.jsonl").write_text("".join(lines))
        for file, content in (
            ("summary.json", summary),
            (".lock", lock),
            (".ended", ended),
        ):
            if content is not None:
                run.joinpath(file).write_text(json.dumps(content))
        return run

    return make


def line(step: int, **more: Any) -> str:
    """A line of the metrics; each step takes half a second."""
    numbers = {"loss": 3 - step / 100, "learning_rate": 1e-3, "tokens": step * 50}
    return (
        json.dumps({"step": step, **numbers, "tokens_per_second": 100.0, **more}) + "\n"
    )


def here(pid: int | None = None) -> dict[str, Any]:
    """What the lock file of a process of this host says."""
    return {"pid": os.getpid() if pid is None else pid, "host": socket.gethostname()}


def grow_old(path: Path, seconds: float) -> None:
    """Makes a file look as if it had not changed for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


class Answer(NamedTuple):
    """What the board answered."""

    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


@pytest.fixture
def board(tmp_path, monkeypatch) -> "Asked":
    """A board over tmp_path/runs, which looks anew each time that it is asked."""
    monkeypatch.setattr(shared, "SECONDS", 0.0)
    tmp_path.joinpath("runs").mkdir(exist_ok=True)
    return Asked(tmp_path / "runs")


class Asked:
    """A board that is asked without a network, as its server would ask it."""

    def __init__(self, *folders: Path):
        self.catalog = Catalog(list(folders))
        self.queue = Queue(folders[0])
        self.app = application(self.catalog, self.queue, TOKEN, "127.0.0.1", 8470)

    def key(self, name: str) -> str:
        """The key of the run with that name."""
        entries = self.catalog.refresh().values()
        return next(e.place.key for e in entries if e.place.name == name)

    def entry(self, name: str) -> Any:
        """What the board knows of a run now."""
        self.catalog.read_at = 0.0
        return self.catalog.refresh()[self.key(name)]

    def get(self, path: str, **headers: str) -> Answer:
        """The answer to a GET with the token."""
        return self.ask("GET", path, {"x-board-token": TOKEN, **headers})

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        pieces: int = 1,
    ) -> Answer:
        """The answer to a request; of a stream what comes in the first moment."""
        return asyncio.run(self._ask(method, path, headers or {}, body, pieces))

    async def _ask(self, method, path, headers, body, pieces) -> Answer:
        self.catalog.read_at = 0.0
        raw, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": raw,
            "raw_path": raw.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in {"host": HOST, **headers}.items()
            ],
            "client": ("127.0.0.1", 5000),
            "server": ("127.0.0.1", 8470),
        }
        size = -(-len(body) // pieces)
        parts = [body[n * size : (n + 1) * size] for n in range(pieces)]
        left = list(parts)
        sent: list[dict] = []

        async def receive() -> dict:
            if left:
                part = left.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(left)}
            while len(sent) < 2:  # until the first piece of a stream is there
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.03)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        first = sent[0]
        found = {k.decode(): v.decode("latin-1") for k, v in first["headers"]}
        return Answer(
            first["status"], found, b"".join(m.get("body", b"") for m in sent[1:])
        )

"""What the board costs over many runs: time to a page, memory, CPU while idle.

    python scripts/benchmark_board.py [--runs 500] [--lines 2000]

It makes the directories in a temporary folder, starts the command, and measures it from
outside: the seconds from the command to the first page, those of later ones, resident
memory, and the share of a CPU that it uses while a browser's table follows it. Then one
run logs 50 lines a second, and it is measured how late its page learns of a line.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "jaxpeft" / "assets" / "quickstart.yaml"
PAGE = os.sysconf("SC_PAGESIZE")
TICKS = os.sysconf("SC_CLK_TCK")


def make(folder: Path, runs: int, lines: int) -> None:
    """Makes the directories: nine in ten have ended."""
    from jaxpeft import config

    text = config.to_yaml(config.load(CONFIG))
    metrics = ""
    for step in range(1, lines + 1):
        metrics += json.dumps(line(step)) + "\n"
        if step % 50 == 0:
            metrics += json.dumps({"step": step, "eval_loss": 1.0}) + "\n"
    for number in range(runs):
        run = folder / f"group-{number % 20}" / f"run-{number:04}"
        run.mkdir(parents=True)
        run.joinpath("config.yaml").write_text(text)
        run.joinpath("metrics.jsonl").write_text(metrics)
        if number % 10:
            summary = {"steps": lines, "stopped_early": False, "seconds": 10.0}
            run.joinpath("summary.json").write_text(json.dumps(summary))


def line(step: int) -> dict[str, float]:
    """A line of training, as a run writes it."""
    return {
        **{"step": step, "loss": 3 / step**0.5, "learning_rate": 1e-4},
        **{"grad_norm": 1.234567890123, "update_norm": 0.0123456789},
        **{"tokens": step * 2048, "tokens_per_second": 1234.5},
        **{"data_wait": 0.0005, "epoch": step / 100},
    }


class Board:
    """The command, and what it uses."""

    def __init__(self, folder: Path):
        start = time.monotonic()
        command = [sys.executable, "-m", "jaxpeft.board", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--runs", str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said.startswith("open "):
                self.address, _, token = said.split()[1].partition("/?token=")
                self.headers = {"x-board-token": token}
                break
        else:
            raise SystemExit("the board did not begin")
        seconds, _ = self.get("/")
        self.page = seconds
        self.first = time.monotonic() - start

    def get(self, path: str) -> tuple[float, bytes]:
        """The seconds until an answer is there, and it."""
        start = time.monotonic()
        with self.open(path) as answer:
            content = answer.read()
        return time.monotonic() - start, content

    def open(self, path: str):
        """An answer that is read bit by bit."""
        request = urllib.request.Request(self.address + path, headers=self.headers)
        return urllib.request.urlopen(request, timeout=60)

    def memory(self) -> int:
        """Bytes that are resident."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * PAGE

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        text = Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


def events(answer: Iterator[bytes]) -> Iterator[tuple[str, str, float]]:
    """(name, data, when) of each event of a stream."""
    name = ""
    for raw in answer:
        text = raw.decode().rstrip("\n")
        if text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            yield name, text[6:], time.monotonic()


def follow(board: Board, folder: Path, seconds: float) -> list[float]:
    """How late a run's page learns of lines, of which 50 come each second."""
    _, page = board.get("/?sort=name&down=0")
    key = page.decode().split(f'">{folder.parent.name}/{folder.name}</a>')[0]
    key = key.rpartition("/run/")[2]
    written: dict[int, float] = {}
    late: list[float] = []

    def write() -> None:
        with (folder / "metrics.jsonl").open("a", buffering=1) as file:
            for step in range(10_000, 10_000 + int(50 * seconds)):
                written[step] = time.monotonic()
                file.write(json.dumps(line(step)) + "\n")
                time.sleep(0.02)

    writer = threading.Thread(target=write)
    with board.open(f"/run/{key}/events") as answer:
        writer.start()
        for name, data, when in events(answer):
            if name == "charts":
                step = max(json.loads(data)[0]["series"][0]["x"])
                if step in written:
                    late.append(when - written[step])
            if not writer.is_alive():
                break
    writer.join()
    return late


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, args.runs, args.lines)
        board = Board(folder)
        try:
            parts = f"{board.page:.2f} s from its request, {board.cpu():.2f} s of CPU"
            print(f"command to first page: {board.first:.2f} s; {parts}")
            print(f"the page again: {board.get('/')[0]:.2f} s")
            print(f"memory: {board.memory() / 2**20:.0f} MiB")
            before = board.cpu()
            time.sleep(args.seconds)
            share = (board.cpu() - before) / args.seconds
            print(f"CPU, nobody looks: {share:.2%}")
            with board.open("/events"):
                time.sleep(3)
                before = board.cpu()
                time.sleep(args.seconds)
                share = (board.cpu() - before) / args.seconds
                print(f"CPU, a table follows, nothing changes: {share:.2%}")
            run = folder / "group-0" / "run-0000"
            before, start = board.cpu(), time.monotonic()
            late = follow(board, run, args.seconds)
            share = (board.cpu() - before) / (time.monotonic() - start)
            print(
                f"50 lines a second: {len(late)} updates, the last line of each "
                f"{sum(late) / len(late):.2f} s old on average, {max(late):.2f} s at "
                f"most; CPU {share:.1%}"
            )
            _, page = board.get("/")
            key = page.decode().split('href="/run/')[1].split('"')[0]
            seconds, _ = board.get(f"/run/{key}/findings")
            print(f"findings, which load JAX: {seconds:.2f} s")
            print(f"memory at the end: {board.memory() / 2**20:.0f} MiB")
        finally:
            board.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                board.process.wait(10)
            board.process.kill()


if __name__ == "__main__":
    main()

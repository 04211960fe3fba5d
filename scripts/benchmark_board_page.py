"""What watching a run that logs 50 lines a second costs in a real browser.

    python scripts/benchmark_board_page.py [--seconds 60]

It starts the board over 500 runs of 2,000 lines each, opens the page of one in a
headless Chromium (which needs chromium and chromium-driver), lets that run grow by 50
lines a second, and measures in the page: how old a line is once it is drawn, the heap
of the tab after a collection, and how late a timer of 50 ms comes, which is how long a
click would wait.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmark_board import Board, line, make

FLAGS = """--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-quic
--disable-dev-shm-usage --window-size=1280,900""".split()
FIRST = 10_000  # the step of the first line that is written

# Each entry: when what an update brought was on the screen, and its last step.
WATCH = """
window.drawn = [];
document.addEventListener("charts", ({ detail }) => {
  const last = Math.max(...detail[0].series[0].x.slice(-1));
  requestAnimationFrame(() => setTimeout(() => drawn.push([Date.now() / 1000, last])));
});
window.late = [];
let before = performance.now();
setInterval(() => {
  const now = performance.now();
  late.push(now - before - 50);
  before = now;
}, 50);
"""


def opened() -> Any:
    """A headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    names = ("chromium", "chromium-browser", "google-chrome")
    options.binary_location = next(filter(None, map(shutil.which, names)))
    for flag in FLAGS:
        options.add_argument(flag)
    service = webdriver.ChromeService(
        executable_path=shutil.which("chromedriver"), log_output=os.devnull
    )
    return webdriver.Chrome(options=options, service=service)


def heap(browser: Any) -> float:
    """The MiB of the tab's heap that something still refers to."""
    browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
    browser.execute_cdp_cmd("Performance.enable", {})
    found = browser.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    used = next(one["value"] for one in found if one["name"] == "JSHeapUsedSize")
    return used / 2**20


def grow(run: Path, seconds: float, written: dict[int, float]) -> None:
    """Writes 50 lines a second."""
    start = time.monotonic()
    with (run / "metrics.jsonl").open("a", buffering=1) as file:
        for number in range(int(50 * seconds)):
            time.sleep(max(0.0, start + number / 50 - time.monotonic()))
            written[FIRST + number] = time.time()
            file.write(json.dumps(line(FIRST + number)) + "\n")


def ages(drawn: list[list[float]], written: dict[int, float]) -> list[float]:
    """How old each line was when it was drawn first."""
    found, left = [], sorted(written)
    for when, last in drawn:
        while left and left[0] <= last:
            found.append(when - written[left.pop(0)])
    return found


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder, args.runs, args.lines)
        board, browser = Board(folder), opened()
        try:
            run = folder / "group-0" / "run-0000"
            _, page = board.get("/?words=run-0000")
            key = page.decode().split("run-0000</a>")[0].rpartition("/run/")[2][:16]
            browser.get(f"{board.address}/?token={board.headers['x-board-token']}")
            browser.get(f"{board.address}/run/{key}")
            browser.execute_script(WATCH)
            time.sleep(5)
            begun, before, start = heap(browser), board.cpu(), time.monotonic()
            written: dict[int, float] = {}
            writer = threading.Thread(target=grow, args=[run, args.seconds, written])
            browser.execute_script("late.length = 0")
            writer.start()
            writer.join()
            time.sleep(2)
            share = (board.cpu() - before) / (time.monotonic() - start)
            drawn, late = browser.execute_script("return [drawn, late]")
            old = ages(drawn, written)
            print(f"{len(written)} lines, {len(old)} drawn, {len(drawn)} updates")
            print(
                f"age of a line as it is drawn: {sum(old) / len(old):.2f} s on "
                f"average, {max(old):.2f} s at most"
            )
            print(
                f"a timer of 50 ms is {sum(late) / len(late):.1f} ms late on average, "
                f"{max(late):.0f} ms at most"
            )
            print(f"heap of the tab: {begun:.1f} MiB, then {heap(browser):.1f} MiB")
            print(f"the board: {share:.1%} of a core, {board.memory() / 2**20:.0f} MiB")
            print(f"load average: {os.getloadavg()[0]:.1f}")
        finally:
            browser.quit()
            board.process.terminate()
            board.process.wait(10)


if __name__ == "__main__":
    main()

"""The parts of a source made into examples, in this process or in several."""

import collections
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import TYPE_CHECKING, Any

from jaxpeft.data.making import Made, Maker, Recipe
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.data.sources import Part

FEW = 8192  # records that are made sooner than a process has started
_AHEAD = 2  # parts that wait for each worker
_LOOK = 1.0  # seconds between two looks at whether workers live
_PATIENCE = 5.0  # seconds for the pool to see it by itself
# So that a worker takes no device, nor more than a core.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def default() -> int:
    """How many workers there are where nothing is said: the cores, at most 8."""
    has = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has else os.cpu_count()
    return max(1, min(8, cores or 1))


def make(
    parts: "Iterator[Part]",
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    path: str,
    *,
    workers: int,
    stops: bool,
) -> Iterator[tuple["Part", Made]]:
    """What the parts of a source become, in their order.

    Args:
        parts: of the source, read as they are wanted.
        recipe: what records become.
        tokenizer: the model's tokenizer.
        path: the source, for messages.
        workers: the processes that make them, if there is work for more than one.
        stops: whether a row that cannot be used ends it: from there on rows are
            looked at only, so that all such rows are told together.

    Yields:
        Each part, and what it becomes.

    Raises:
        InputError: the source, the format or the template cannot be used, or a worker
            has died.
    """
    first: list[Part] = []
    while workers > 1 and sum(part.count for part in first) < FEW:
        part = next(parts, None)
        if part is None:
            break
        first.append(part)
    is_little = sum(part.count for part in first) < FEW
    parts = chain(first, parts)
    if workers == 1 or is_little:
        maker, renders = Maker(recipe, tokenizer), True
        for part in parts:
            made = maker.make(part, path, renders=renders)
            renders = renders and not (stops and made.rejects.count)
            yield part, made
        return
    yield from _by_workers(parts, (recipe, tokenizer), path, workers, stops)


def _by_workers(
    parts: "Iterator[Part]", given: Any, path: str, workers: int, stops: bool
) -> Iterator[tuple["Part", Made]]:
    with _environment():
        pool = futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _begin, given
        )
    waiting: collections.deque[tuple[Part, Any]] = collections.deque()
    renders, ended = True, False
    try:
        while True:
            while len(waiting) < workers * (1 + _AHEAD):
                part = next(parts, None)
                if part is None:
                    break
                with _environment():  # processes start as they are wanted
                    waiting.append((part, pool.submit(_make, part, path, renders)))
            if not waiting:
                ended = True
                break
            part, future = waiting.popleft()
            made = _result(future, pool)
            renders = renders and not (stops and made.rejects.count)
            yield part, made
    except BrokenProcessPool as error:
        raise InputError(
            f"{path}: {_death(pool)} while the data were read; set data.num_workers "
            f"below {workers} (1 does without such processes), or give the job more "
            "memory. Nothing half-made is kept: the same command begins anew"
        ) from error
    finally:
        _end(pool, ended)


def _result(future: Any, pool: futures.ProcessPoolExecutor) -> Made:
    """What a worker has made.

    Raises:
        BrokenProcessPool: a worker has died.
    """
    while not futures.wait([future], _LOOK).done:
        # The pool sees it, but for one that died in the middle of what it sent: of that
        # the pool would wait for the rest.
        if _dead(pool) and not futures.wait([future], _PATIENCE).done:
            raise BrokenProcessPool("a worker died while it sent a result")
    return future.result()


def _dead(pool: futures.ProcessPoolExecutor) -> list[int]:
    """The exit codes of those workers that have ended."""
    codes = [process.exitcode for process in list((pool._processes or {}).values())]
    return [code for code in codes if code is not None]


def _death(pool: futures.ProcessPoolExecutor) -> str:
    """How the first worker has died; the pool has asked the others to end since."""
    # Their codes are known once the pool's own thread has waited for them.
    until = time.monotonic() + _PATIENCE
    while len(_dead(pool)) < len(pool._processes or {}) and time.monotonic() < until:
        time.sleep(0.01)
    codes = sorted(_dead(pool), key=lambda code: code == -signal.SIGTERM)
    if codes and codes[0] == -signal.SIGKILL:
        return (
            "a worker process was killed (SIGKILL), as the system does where memory "
            "runs out,"
        )
    return "a worker process ended" + (f" (exit code {codes[0]})" if codes else "")


def _end(pool: futures.ProcessPoolExecutor, ended: bool) -> None:
    """Ends the workers, whatever they are at if the work has not come to its end."""
    if not ended:
        processes = list((pool._processes or {}).values())
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        # Else the pool would wait for the rest of what one of them was sending.
        pool._result_queue._writer.close()  # pyright: ignore[reportAttributeAccessIssue]
    pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Workers inherit the environment as it is when they start."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_maker: Maker | None = None  # of this worker


def _begin(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> None:
    global _maker
    # A terminal's Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _maker = Maker(recipe, tokenizer)


def _die_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _make(part: "Part", path: str, renders: bool) -> Made:
    assert _maker is not None
    return _maker.make(part, path, renders=renders)

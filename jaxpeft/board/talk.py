"""A model that answers: a process that loads it, and is asked line by line.

Each line of standard input is a request and each of standard output a part of an
answer, both JSON. A request has a number, which the parts of its answer repeat; loading
is the first one, with the settings of the next, and {"stop": number} ends an answer
early. The process ends with its standard input, so that it never outlives the board.
"""

import dataclasses
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from jaxpeft.errors import InputError

LOADING = 0  # the number of the first request
MOST = 4096  # tokens of an answer
DRAWING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")


class _Asked:
    """What standard input has asked for so far."""

    def __init__(self) -> None:
        self.requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.stopped: float = -1  # the last number whose answer nobody wants

    def listen(self) -> None:
        """Takes requests; one to stop counts at once."""
        for line in sys.stdin:
            request = json.loads(line)
            if "stop" in request:
                self.stopped = request["stop"]
            else:
                self.requests.put(request)
        self.stopped = math.inf
        self.requests.put(None)


def main() -> int:
    """Answers until nobody asks any more; the first part says that it is ready."""
    out = _alone()
    asked = _Asked()
    threading.Thread(target=asked.listen, daemon=True).start()
    first = asked.requests.get()
    if first is None:
        return 0
    try:
        _settings(first)  # what is wrong with them is said before a large model loads
        model = _load(first)
    except InputError as error:
        _tell(out, LOADING, error="; ".join(error.problems))
        return 0
    _tell(out, LOADING, ready=True)
    dialogue, settings = None, None
    while (request := asked.requests.get()) is not None:
        number = request["number"]
        try:
            wanted = _settings(request)
            if dialogue is None or wanted != settings:
                dialogue, settings = _dialogue(model, wanted), wanted
            dialogue.messages = _messages(request, wanted["system"])
            for piece in dialogue.say(str(request.get("text", ""))):
                _tell(out, number, piece=piece)
                if asked.stopped >= number:
                    break
            _tell(out, number, end=True)
        except InputError as error:
            _tell(out, number, error="; ".join(error.problems))
    return 0


def _alone() -> TextIO:
    """Standard output for the answers alone: what else is said goes where errors do."""
    sys.stdout.flush()
    mine = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(mine, "w", encoding="utf-8")


def _tell(out: TextIO, number: int, **content: Any) -> None:
    out.write(json.dumps({"number": number, **content}) + "\n")
    out.flush()


def _load(first: Mapping[str, Any]) -> Any:
    from jaxpeft.assembly import configuration, trained
    from jaxpeft.devices import programs

    programs.keep()
    run = str(first["run"])
    if not first.get("base"):
        return trained.load(run, None, None, None)
    model = configuration.began(run)
    if model is None:
        raise InputError(f"{Path(run).name}: says not which model it began with")
    return trained.untrained(model)  # as the run had it: quantized, in its dtype


def _settings(request: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a request, as numbers of the right kinds.

    Raises:
        InputError: one is no number, or out of its range.
    """
    from jaxpeft.models.sampling import Sampling

    kinds = {one.name: type(one.default) for one in dataclasses.fields(Sampling)}
    given, wrong = {}, []
    for name in (*DRAWING, "max_new_tokens"):
        text = str(request.get(name, "")).strip()
        if text:
            try:
                given[name] = kinds.get(name, int)(text)
            except ValueError:
                wrong.append(f"{name}: found {text!r}; give a number")
    most = given.pop("max_new_tokens", 256)
    if not 1 <= most <= MOST:
        wrong.append(f"max_new_tokens: found {most}; give 1 to {MOST:,}")
    if not wrong:
        wrong += Sampling(**given).problems()
    if wrong:
        raise InputError(*wrong)
    system = str(request.get("system", "")).strip() or None
    return {"system": system, "max_new_tokens": most, "sampling": Sampling(**given)}


def _dialogue(model: Any, settings: Mapping[str, Any]) -> Any:
    from jaxpeft.generate.dialogue import Dialogue

    return Dialogue(model, **settings)


def _messages(request: Mapping[str, Any], system: str | None) -> list[dict[str, str]]:
    """The conversation so far, as the page has it."""
    first = [{"role": "system", "content": system}] if system else []
    given = request.get("messages")
    told = []
    for one in given if isinstance(given, list) else []:
        if isinstance(one, dict) and one.get("role") in ("user", "assistant"):
            told.append({"role": one["role"], "content": str(one.get("content", ""))})
    return first + told

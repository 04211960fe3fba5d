"""Shows that SIGTERM ends a command within 30 s at ten places, and loses nothing.

    python scripts/sigterm.py               a table of all places
    python scripts/sigterm.py --at saving   one place

At each place a call of C that takes two minutes, or 8 s where it is let come to its
end, and hears no signals stands in for work on a large model. The same command is then
repeated without it: it has to end in the very state that a run without a signal ends
in. Exit code 0: everything was so.
"""

import argparse
import hashlib
import importlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    "training.max_steps=4",
    "training.eval_steps=2",
    "training.save_steps=100",
    "training.logging_steps=1",
    "training.samples=1",
    "data.eval.max_samples=64",
    "adapter.lora_dropout=0.1",
]
GRACE = 30.0  # seconds, training.termination_grace_seconds by default
HERE = "this is the place"


class Place(NamedTuple):
    """A place of a command that a signal may meet it at.

    Attributes:
        function: module and name of what is called there.
        at: the number of the call that takes long, from 0.
        seconds: how long it takes then; a step and a batch come to their end, anything
            else would take longer than anybody waits.
        command: which command; "train" or "export".
    """

    function: str
    at: int = 0
    seconds: float = 120.0
    command: str = "train"


PLACES = {
    "reading data": Place("jaxpeft.data.sources:read"),
    "tokenizing": Place("jaxpeft.data.render:Renderer.render"),
    "loading weights": Place("jaxpeft.hf.load:_read", 3),
    "compiling the step": Place("jax.stages:Lowered.compile", 1),
    "a step": Place("jaxpeft.train.program:Alone.take", 2, 8.0),
    "evaluating": Place("jaxpeft.train.evaluating:Evaluate._told", 5, 8.0),
    "samples": Place("jaxpeft.train.samples:generate"),
    "saving": Place("jaxpeft.rundir.manifest:seal", 0, 8.0),
    "writing the adapter": Place("jaxpeft.hf:save_adapter"),
    "exporting": Place("jaxpeft.hf.save:_verify", command="export"),
}


class Met(NamedTuple):
    """How a command met SIGTERM.

    Attributes:
        code: its exit code.
        seconds: from the signal to its end.
        said: the last line on standard error.
    """

    code: int
    seconds: float
    said: str


def rounds(seconds: float) -> int:
    """The rounds of a hash that take so long, in one call that hears no signals."""
    start = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**18)
    return int(seconds * 2**18 / (time.monotonic() - start))


def slow(place: Place) -> None:
    """Makes one call at a place of this process take long, announced by `HERE`."""
    module, _, path = place.function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function: Callable = getattr(owner, name)
    calls: Iterator[int] = iter(range(2**31))
    work = rounds(place.seconds)

    def slowed(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == place.at:
            print(HERE, flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", work)
        return function(*arguments, **keywords)

    setattr(owner, name, slowed)


def command(name: str, output: Path, config: str, more: list[str]) -> list[str]:
    """The arguments of a command on a run."""
    if name == "train":
        return ["train", "--config", config, f"output_dir={output}", *more]
    return ["export", "--run", str(output), "--to", "merged", f"--out={output}-out"]


def meet(place: str, arguments: list[str]) -> Met:
    """Runs a command that is slow at a place, and asks it to end there."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--slow", place, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stderr is not None
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(child.stderr or ()))
    reader.start()
    for line in child.stdout:
        if HERE in line:
            break
    child.send_signal(signal.SIGTERM)
    start = time.monotonic()
    child.stdout.read()
    code = child.wait()
    took = time.monotonic() - start
    reader.join()
    return Met(code, took, told[-1].strip() if told else "")


def repeat(arguments: list[str]) -> str:
    """Runs a command to its end; returns the hash of a run's final state, or "done"."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxpeft", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"code {done.returncode}: {done.stderr.strip()[-300:]}"
    found = [s for s in done.stdout.splitlines() if s.startswith("state after step")]
    return found[0].split(": ")[1] if found else "done"


def table(places: list[str], config: str, more: list[str]) -> Iterator[tuple]:
    """(place, how it met SIGTERM, whether all is well) for each place."""
    more = [*SETTINGS, *more]
    with tempfile.TemporaryDirectory() as folder:
        straight = Path(folder, "straight")
        expected = {"train": repeat(command("train", straight, config, more))}
        expected["export"] = "done"
        for number, name in enumerate(places):
            place = PLACES[name]
            output = Path(folder, str(number))
            if place.command == "export":
                output = straight
            arguments = command(place.command, output, config, more)
            met = meet(name, arguments)
            ended = repeat(arguments)
            fine = met.code == 75 and met.seconds < GRACE
            yield name, met, fine and ended == expected[place.command], ended


def main() -> int:
    """Prints the table; returns the exit code."""
    if sys.argv[1:2] == ["--slow"]:
        from jaxpeft import cli

        slow(PLACES[sys.argv[2]])
        sys.argv = ["jaxpeft", *sys.argv[3:]]
        return cli.main()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--at", choices=PLACES, action="append", help="one place")
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    failures = 0
    for name, met, fine, ended in table(
        args.at or list(PLACES), args.config, args.overrides
    ):
        failures += not fine
        print(f"{name:<20} code {met.code}  {met.seconds:5.1f} s  {met.said}")
        print(f"{'':<20} repeated: {ended}{'' if fine else '  NOT AS IT SHOULD BE'}")
        sys.stdout.flush()
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())

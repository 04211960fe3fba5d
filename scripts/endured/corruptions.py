"""The newest checkpoint of a finished run, harmed in one way after another."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from endured import runs
from endured.runs import Trial
from jaxpeft.rundir import manifest
from jaxpeft.rundir.checkpoint import Checkpoints

Harm = Callable[[Path], object]
PLACES = {"first": 0.0, "middle": 0.5, "last": 1.0}


def flip(path: Path, place: float) -> None:
    """Flips one bit of the byte at `place`, from 0 (the first) to 1 (the last)."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path) -> None:
    """Takes off the last byte."""
    path.write_bytes(path.read_bytes()[:-1])


def rewrite_manifest(step: Path, change: Callable[[list], list]) -> None:
    """Changes what the manifest says of its first file."""
    path = step / manifest.MANIFEST
    content = json.loads(path.read_text())
    files = content.get("files", content)
    name = sorted(files)[0]
    files[name] = change(files[name])
    path.write_text(json.dumps(content))


def replace_by_file(step: Path) -> None:
    """Puts an empty file where the checkpoint was."""
    shutil.rmtree(step)
    step.touch()


def empty(step: Path) -> None:
    """Leaves the folder without anything in it."""
    shutil.rmtree(step)
    step.mkdir()


WHOLE: dict[str, Harm] = {
    "the manifest is gone": lambda step: (step / manifest.MANIFEST).unlink(),
    "the manifest is no JSON": lambda s: (s / manifest.MANIFEST).write_text("{"),
    "the manifest is empty": lambda step: (step / manifest.MANIFEST).write_text(""),
    "the manifest has another size": lambda step: rewrite_manifest(
        step, lambda entry: [entry[0] + 1, entry[1]]
    ),
    "the manifest has another hash": lambda step: rewrite_manifest(
        step, lambda entry: [entry[0], "0" * len(entry[1])]
    ),
    "a file more": lambda step: (step / "state" / "more").touch(),
    "the state's folder is gone": lambda step: shutil.rmtree(step / "state"),
    "the folder is empty": empty,
    "a file stands in its place": replace_by_file,
}


def harms(step: Path) -> dict[str, Harm]:
    """Every way in which this checkpoint is to be harmed, by what is said of it."""
    found = dict(WHOLE)
    for path in sorted(step.rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        name = path.relative_to(step)
        for word, place in PLACES.items():
            found[f"a bit of the {word} byte of {name}"] = (
                lambda step, n=name, p=place: flip(step / n, p)
            )
        found[f"{name} is a byte shorter"] = lambda step, n=name: truncate(step / n)
        found[f"{name} is gone"] = lambda step, n=name: (step / n).unlink()
    return found


def trials(folder: Path, commands: int) -> Iterator[Trial]:
    """Harms the newest checkpoint; the one before it has to be found each time.

    For `commands` of the harms the whole command is run, which has to warn, to train
    the lost steps again and to end in the very state of the run that was not harmed.
    """
    finished = folder / "finished"
    done = subprocess.run(
        runs.command(finished), cwd=runs.ROOT, capture_output=True, text=True
    )
    expected = runs.digest(done.stdout.splitlines())
    before, newest = runs.sealed(finished)[-2:]
    ways = harms(finished / "checkpoints" / str(newest))
    every = max(1, len(ways) // max(1, commands))
    for number, (name, harm) in enumerate(ways.items()):
        output = shutil.copytree(finished, folder / f"harmed-{number}")
        begun = time.monotonic()
        harm(output / "checkpoints" / str(newest))
        with Checkpoints(
            output / "checkpoints", save_total_limit=None, fingerprint={}
        ) as checkpoints:
            found = checkpoints.latest()
        passed, told = found == before, f"found step {found}"
        if passed and commands and number % every == 0:
            done = subprocess.run(
                runs.command(output), cwd=runs.ROOT, capture_output=True, text=True
            )
            digest = runs.digest(done.stdout.splitlines())
            warned = "is damaged" in done.stderr
            passed = digest == expected and warned
            told += f", trained again: state {digest}, {'' if warned else 'not '}warned"
        yield Trial(name, passed, time.monotonic() - begun, told)
        shutil.rmtree(output)

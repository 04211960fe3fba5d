"""Forty kinds of bad input, each given to the real command.

The rows are those of `tests/bad_inputs`, which call the command's function; here each
is a process of its own, and those that need one are added. A refusal is exit code 2,
the words that say what to do, no traceback and nothing written.
"""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from endured.runs import ROOT, Trial
from jaxpeft.rundir.lock import RunLock

sys.path.insert(0, str(ROOT))

from tests.bad_inputs import (
    test_configuration,
    test_data,
    test_models,
    test_optimizers,
)
from tests.bad_inputs.conftest import Place

TABLES = test_configuration, test_data, test_models, test_optimizers
ASSET = ROOT / "jaxpeft" / "assets" / "tiny-llama"


class Row(NamedTuple):
    """One bad input.

    Attributes:
        name: begins with its number in the list of promises, where it has one.
        spoil: called with the place.
        words: that the answer has to say; `{here}` is the place's folder.
        code: the exit code.
    """

    name: str
    spoil: Callable[[Place], Any]
    words: Sequence[str]
    code: int = 2


def rate_as_text(place: Place) -> None:
    """1e-4 is a number, although YAML 1.1 reads text."""
    place.arguments = ["optimizer.learning_rate=1e-4"]


def alias_bomb(place: Place) -> None:
    """Forty lists of nine aliases of the list before."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 40):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    place.text = "\n".join(lines)


def brackets(place: Place) -> None:
    """Deeper than any reader's stack."""
    place.text = "a: " + "[" * 50_000


def code_in_config(place: Place) -> None:
    """A config.json that names code, which has to stay unread."""
    folder = place.model()
    (folder / "evil.py").write_text(f"open({str(place.folder / 'evil')!r}, 'w')\n")
    names = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    place.describe(folder, auto_map=names, _attn_implementation_internal="evil.attend")


def header_of_half_the_memory(place: Place) -> None:
    """A safetensors file whose header claims 2^63 bytes."""
    path = place.model() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")


def header_of_many_entries(place: Place) -> None:
    """A safetensors file with 500,000 tensors of nothing."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{i}": entry for i in range(500_000)}).encode()
    path = place.model() / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)


MORE = [
    Row("2-a rate of 1e-4", rate_as_text, (), 0),
    Row("9-alias bomb", alias_bomb, ("aliases",)),
    Row("9-50,000 brackets", brackets, ("{here}/config.yaml",)),
    Row("19-config.json names code", code_in_config, (), 0),
    Row("21-header of 2^63 bytes", header_of_half_the_memory, ("model.safetensors",)),
    Row("22-500,000 tensors", header_of_many_entries, ("model.safetensors",)),
]


def rows() -> list[Row]:
    """All of them, the tests' own first."""
    found = []
    for table in TABLES:
        for row in table.ROWS:
            spoil, words = row.values
            found.append(Row(str(row.id), spoil, words))
    return found + MORE


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """All that is below `folder`, with its size and when it was changed."""
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def call(arguments: Sequence[str]) -> subprocess.CompletedProcess:
    """The training command."""
    command = [sys.executable, "-m", "jaxpeft.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def trial(row: Row, folder: Path) -> Trial:
    """One bad input, given to the command."""
    folder.mkdir(parents=True)
    place = Place(folder, ASSET)
    row.spoil(place)
    arguments = place.write()
    before = contents(folder)
    begun = time.monotonic()
    done = call(arguments)
    seconds = time.monotonic() - begun
    said = done.stderr
    missing = [w for w in row.words if w.format(here=folder) not in said]
    wrong = [f"exit {done.returncode}"] * (done.returncode != row.code)
    wrong += [f"does not say {word!r}" for word in missing]
    wrong += ["a traceback"] * ("Traceback" in said + done.stdout)
    if row.code:
        wrong += ["something was written"] * (contents(folder) != before)
    elif (folder / "evil").exists():
        wrong.append("the code was read")
    told = "; ".join(wrong) or (said.strip().splitlines() or ["exit 0"])[0]
    told = told.replace(str(folder), ".")
    return Trial(row.name, not wrong, seconds, told[:120])


def run_in_use(folder: Path) -> Trial:
    """40: the run's directory belongs to another process."""
    folder.mkdir(parents=True)
    place = Place(folder, ASSET)
    with RunLock(folder / "run"):
        begun = time.monotonic()
        done = call(place.write())
    passed = done.returncode == 2 and "is in use by process" in done.stderr
    first = (done.stderr.strip().splitlines() or [""])[0].replace(str(folder), ".")
    return Trial("40-run in use", passed, time.monotonic() - begun, first[:120])


def damaged_checkpoints(folder: Path) -> Iterator[Trial]:
    """38 and 39: the newest checkpoint is damaged, then all of them."""
    folder.mkdir(parents=True)
    place = Place(folder, ASSET)
    place.set("training.max_steps", 3)
    place.set("training.save_steps", 1)
    arguments = place.write()
    call(arguments)
    checkpoints = folder / "run" / "checkpoints"
    steps = sorted(int(path.name) for path in checkpoints.iterdir())
    for name, gone, code in (
        ("38-newest checkpoint damaged", steps[-1:], 0),
        ("39-all checkpoints damaged", steps, 2),
    ):
        for step in gone:
            (checkpoints / str(step) / "manifest.json").unlink(missing_ok=True)
        begun = time.monotonic()
        done = call(arguments)
        passed = done.returncode == code and "damaged" in done.stderr
        first = (done.stderr.strip().splitlines() or [""])[0].replace(str(folder), ".")
        yield Trial(name, passed, time.monotonic() - begun, first[:120])


def trials(folder: Path) -> Iterator[Trial]:
    """All of them, one after another."""
    for number, row in enumerate(rows()):
        yield trial(row, folder / f"input-{number}")
    yield run_in_use(folder / "in-use")
    yield from damaged_checkpoints(folder / "damaged")


def kinds(names: Sequence[str]) -> set[int]:
    """The numbers of the list of promises that the names begin with."""
    numbers = (name.split("-")[0] for name in names)
    return {int(number) for number in numbers if number.isdigit()}

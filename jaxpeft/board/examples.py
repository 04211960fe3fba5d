"""The first examples of a run as its model sees them, made in a process of its own.

They need the tokenizer and the data, which the board itself never opens.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from jaxpeft.board.processes import TOKEN, python
from jaxpeft.errors import InputError

EACH = 3  # examples of a source
PATIENCE = 120.0  # seconds
MOST = 2**24  # bytes


def main() -> int:
    """Writes the examples of the configuration in standard input as JSON."""
    from jaxpeft import config
    from jaxpeft.assembly.configuration import TABLES
    from jaxpeft.config import strict_yaml
    from jaxpeft.look.first import first
    from jaxpeft.look.look import opened
    from jaxpeft.look.page import as_shown

    # What is said on the way is not for who reads the JSON.
    mine = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        mapping = strict_yaml.load(sys.stdin.buffer.read(), "config.yaml")
        cfg = config.parse(mapping, "config.yaml", TABLES)
        tokenizer, batches, evaluation = opened(cfg)
    except InputError as error:
        told: dict[str, Any] = {"error": "; ".join(error.problems)}
    else:
        sets = {"training": batches.examples}
        if evaluation is not None:
            sets["evaluation"] = evaluation.examples
        told = {
            "sets": [
                (kind, source, [as_shown(record) for record in records])
                for kind, examples in sets.items()
                for source, records in first(
                    examples, EACH, tokenizer, cfg.data.max_length
                )
            ]
        }
    with os.fdopen(mine, "w", encoding="utf-8", errors="replace") as out:
        json.dump(told, out)
    return 0


async def of(text: str, work: Path) -> dict[str, Any]:
    """What `main` says of a configuration, from a process that it takes.

    Args:
        text: the configuration.
        work: the folder in which the process starts.

    Returns:
        {"sets": [(kind, source, records)]}, or {"error": why there are none}.
    """
    process = await asyncio.create_subprocess_exec(
        *python("jaxpeft.board"),
        "--examples",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=work,
        env={k: v for k, v in os.environ.items() if k != TOKEN},
    )
    try:
        async with asyncio.timeout(PATIENCE):
            told, _ = await process.communicate(text.encode())
        found = json.loads(told) if len(told) <= MOST else {}
    except TimeoutError:
        found = {"error": f"it took longer than {PATIENCE:.0f} s"}
    except ValueError:
        found = {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return found or {"error": "the data cannot be shown; jaxpeft data says why"}

"""What stands in the directory of a run or of a sweep, read at any time of its life."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft import replacing

CONFIG, ADAPTER = "config.yaml", "adapter"
CHECKPOINTS = "checkpoints"  # a folder, with one for each step
MODEL = "model"  # in its place after full fine-tuning
METRICS, PLOT, SAMPLES = "metrics.jsonl", "loss.png", "samples.json"
SKIPPED = "skipped.jsonl"  # rows of the data that were left out, if there are any
PREDICTIONS = "predictions"  # a file for each evaluation with metrics
HARNESS = "harness"  # one for each evaluation by tasks of EleutherAI's harness
SUMMARY, ENVIRONMENT, REPORT = "summary.json", "environment.json", "report.html"


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where it is absent or only half written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, moved into place so that nobody reads half of it.

    Args:
        path: the file.
        content: what JSON can hold, without NaN and infinities.

    Raises:
        ValueError: `content` has a NaN or an infinity.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    replacing.write_text(path, text + "\n")


def read_lines(path: Path) -> list[Any]:
    """The values of a file that `write_lines` wrote; none where it is absent."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError):
        return []


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    """Writes JSON, a value a line, moved into place; no file where there are none.

    Args:
        path: the file.
        lines: what JSON can hold.
    """
    if lines:
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines)
        replacing.write_text(path, text)
    else:
        path.unlink(missing_ok=True)


def finite(value: float | None) -> float | None:
    """The number as JSON can hold it: None for NaN and infinities."""
    return value if value is not None and math.isfinite(value) else None


def plain(value: Any) -> Any:
    """The value as JSON can hold it: numbers that are not finite are None.

    What JSON does not know is written as text.

    Args:
        value: of any kind; arrays of numpy's become lists.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return finite(value)
    return value if isinstance(value, str | int | None) else str(value)

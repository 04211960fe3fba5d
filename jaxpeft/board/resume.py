"""The command by which a run or a sweep goes on, as its own folder implies it.

It is made of what the folder says of its settings, never of a command that stands
there: that would be started as whoever wrote it wants.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpeft.board import inside
from jaxpeft.board.catalog import Entry
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import CONFIG, ENVIRONMENT
from jaxpeft.rundir.sweep_files import SWEEP


def began(entry: Entry) -> str:
    """The command that began a run or a sweep, as it wrote it down; "" if it did not.

    Args:
        entry: the run or the sweep, whose points have its command.
    """
    name = ENVIRONMENT
    if entry.place.is_sweep:
        rows = entry.sweep.get("points")
        first = rows[0] if isinstance(rows, list) and rows else {}
        name = f"{_text(first, 'directory')}/{ENVIRONMENT}"
    return _text(inside.json_object(entry.place.folder, name), "command")


def _text(found: Any, key: str) -> str:
    value = found.get(key) if isinstance(found, Mapping) else None
    return value if isinstance(value, str) else ""


def of_run(folder: Path) -> list[str]:
    """The command that continues a run from its last checkpoint.

    Args:
        folder: its directory.
    """
    place = strict_yaml.dump_scalar(str(folder))
    return ["train", "--config", str(folder / CONFIG), f"output_dir={place}"]


def of_sweep(entry: Entry) -> tuple[str, list[str]]:
    """The configuration that a sweep began with, and the options that repeat it.

    Args:
        entry: the sweep.

    Returns:
        (YAML, the options behind `--config FILE`).

    Raises:
        InputError: the folder does not say enough to repeat it exactly; with the
            command to repeat by hand, where that is known.
    """
    try:
        text = _configuration(entry.sweep)
        return text, [*_options(entry.sweep), "--out", str(entry.place.folder)]
    except InputError as error:
        why = f"{SWEEP} does not say how to go on with it ({'; '.join(error.problems)})"
        command = began(entry)
        remedy = "repeat the command that began it, where it was begun"
        raise InputError(
            f"{why}; {remedy}" + (f": {inside.shown(command)}" if command else "")
        ) from None


def _configuration(found: Mapping[str, Any]) -> str:
    from jaxpeft import config
    from jaxpeft.assembly.configuration import TABLES
    from jaxpeft.metrics import METRICS

    settings = found.get("settings")
    if not isinstance(settings, dict):
        raise InputError("it has no settings")
    # Its points write below the sweep; the base itself is never trained.
    mapping = {**settings, "output_dir": "sweep"}
    cfg = config.parse(mapping, SWEEP, TABLES, METRICS)
    again = cfg.model_dump(mode="json")
    again.pop("output_dir")
    if again != settings:
        raise InputError("its settings are of another version of jaxpeft")
    return config.to_yaml(cfg)


def _options(found: Mapping[str, Any]) -> list[str]:
    from jaxpeft.sweep import grid, search

    axes = found.get("axes")
    if not isinstance(axes, dict) or not axes:
        raise InputError("it has no axes")
    options = []
    if all(isinstance(axis, list) for axis in axes.values()):
        texts = [f"{key}={_listed(axis)}" for key, axis in axes.items()]
        known, name = grid.axes(texts), "grid"
    else:
        texts = [f"{key}={_space(axis)}" for key, axis in axes.items()]
        known, name = search.spaces(texts), "space"
        options = ["--search", "optuna", *_number(found, "trials", required=True)]
    if known != axes:
        raise InputError("its axes cannot be written as options")
    halving = found.get("halving")
    if isinstance(halving, dict):
        factor = {"halving": halving.get("factor")}
        options += _number(factor, "halving", required=True)
    options += _number(found, "at_once")
    return [*options, *(f"--{name}={text}" for text in texts)]


def _number(
    found: Mapping[str, Any], key: str, *, required: bool = False
) -> Sequence[str]:
    """An option with a whole number; none where there is none."""
    value = found.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return [f"--{key.replace('_', '-')}", str(value)]
    if required:
        raise InputError(f"it has no number {key!r}")
    return []


def _listed(values: Sequence[Any]) -> str:
    return ",".join(map(strict_yaml.dump_scalar, values))


def _space(space: Any) -> str:
    if isinstance(space, dict):
        kind, low, high = (space.get(key) for key in ("kind", "low", "high"))
        if kind == "choice" and isinstance(space.get("values"), list):
            return _listed(space["values"])
        if isinstance(kind, str):
            return ":".join([kind, *map(strict_yaml.dump_scalar, (low, high))])
    raise InputError("an axis of it is neither values nor a space")

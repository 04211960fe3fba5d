"""The points of a sweep: which values each has, and which can train together."""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft import adapters, config, optim
from jaxpeft.assembly import precomputed
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import RunConfig, strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.report import wording

Values = dict[str, Any]


def axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each key, from texts such as `optimizer.learning_rate=1e-5,3e-5`.

    Each value is what it would be in a configuration file; one that holds commas itself
    stands in brackets or quotes.

    Args:
        texts: of `--grid`, one for each key.

    Returns:
        {key: its values}.

    Raises:
        InputError: for all that is wrong.
    """
    values_of: dict[str, list[Any]] = {}
    problems = []
    for text in texts:
        key, equals, listed = text.partition("=")
        try:
            values = strict_yaml.parse_scalar(f"[{listed}]", f"--grid {key}")
        except InputError as error:
            problems += error.problems
            continue
        if not equals or not key or not values:
            problems.append(f"--grid {text}: write section.key=value,value,...")
        elif key in values_of:
            problems.append(f"--grid {key}: is given twice; name all values at once")
        elif len(set(map(strict_yaml.dump_scalar, values))) < len(values):
            problems.append(f"--grid {text}: names a value twice; remove one")
        else:
            values_of[key] = values
    if "output_dir" in values_of:
        problems.append("--grid output_dir: each point has its own; use --out DIR")
    if problems:
        raise InputError(*problems)
    return values_of


def points(axes: Mapping[str, Sequence[Any]]) -> list[Values]:
    """Every combination of the values, the last axis changing fastest.

    Args:
        axes: {key: its values}.

    Returns:
        {key: value} for each point.
    """
    return [dict(zip(axes, combined)) for combined in itertools.product(*axes.values())]


def name(values: Values) -> str:
    """The name of a point: `learning_rate=0.001 seed=1`, numbers with four digits.

    Args:
        values: {key: value} of the point.
    """
    short = {key.rsplit(".", 1)[-1] for key in values}
    whole = len(short) < len(values)  # two keys of different sections end alike
    return " ".join(
        f"{key if whole else key.rsplit('.', 1)[-1]}={wording.choice(value)}"
        for key, value in values.items()
    )


def overrides(values: Values) -> list[str]:
    """The values as a command line would give them, `section.key=value`.

    Args:
        values: {key: value} of a point.
    """
    return [f"{key}={strict_yaml.dump_scalar(value)}" for key, value in values.items()]


def together(
    configs: Sequence[RunConfig], devices: int, at_once: int | None
) -> list[list[int]]:
    """The numbers of the points, in groups that one program can train.

    Args:
        configs: of the points.
        devices: how many there are.
        at_once: the largest group; None: as many as there are where an adapter trains,
            and one at a time where the whole model does, of which each point has a
            copy.
    """
    groups: dict[str, list[int]] = {}
    for number, cfg in enumerate(configs):
        groups.setdefault(_program(cfg, number, devices), []).append(number)
    programs = []
    for numbers in groups.values():
        full = gives_a_model(configs[numbers[0]].adapter)
        size = at_once or (1 if full else len(numbers))
        programs += [numbers[i : i + size] for i in range(0, len(numbers), size)]
    return sorted(programs)


def of_ranks(configs: Sequence[RunConfig], devices: int) -> str | None:
    """A line on why points of several ranks train apart; None where none have to.

    Args:
        configs: of the points.
        devices: how many there are.
    """
    for cfg in configs:
        row = adapters.TABLE[cfg.adapter.method]
        ranks = {
            other.adapter.options.get("r")
            for other in configs
            if other.adapter.method == cfg.adapter.method
        }
        if len(ranks) == 1 or not row.pads or _pads(cfg) or not can_share(cfg, devices):
            continue
        name = cfg.optimizer.name
        return (
            f"points of different adapter.r train one after another: {name} looks at "
            "more than the element that it updates, and the zeros that would pad a "
            "smaller rank to the largest would change that; with adamw they can share "
            "a program"
        )
    return None


def _program(cfg: RunConfig, number: int, devices: int) -> str:
    """The settings that points of one program must have in common, as text."""
    if not can_share(cfg, devices):
        return str(number)
    own = {"own"}  # the kinds of keys of which each point has its own value
    # A schedule that evaluations steer keeps its rate among its settings.
    if optim.SCHEDULES[cfg.schedule.name].scale is None:
        own.add("rate")
        # And what averages warms up by itself.
        if not optim.OPTIMIZERS[cfg.optimizer.name].averages:
            own.add("course")
    if _pads(cfg):
        own.add("rank")
    return json.dumps(config.program(cfg, TABLES, own), sort_keys=True)


def _pads(cfg: RunConfig) -> bool:
    """Whether a run of a smaller rank can be one of a larger, padded with zeros."""
    optimizer = cfg.optimizer
    alone = optim.OPTIMIZERS[optimizer.name].elementwise
    # The update of a zero would be 0 / 0 without it.
    divides = optimizer.options.get("eps") == 0
    return adapters.TABLE[cfg.adapter.method].pads and alone and not divides


def can_share(cfg: RunConfig, devices: int) -> bool:
    """Whether a run can be one of several in a program: see `joint`.

    Args:
        cfg: the run's configuration.
        devices: how many there are.
    """
    fused, traits = cfg.training.fused_backward, optim.OPTIMIZERS[cfg.optimizer.name]
    if fused is None:
        fused = gives_a_model(cfg.adapter) and traits.fused
    whole = cfg.optimizer.quantize_state or not traits.leafwise
    known = not whole and not cfg.optimizer.is_auto
    alike = not precomputed.is_of_new_adapter(cfg)
    # A program's stacked states lie on the device.
    here = not cfg.optimizer.offload
    return devices == 1 and not fused and known and alike and here

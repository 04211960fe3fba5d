"""What is known of one run besides its numbers: settings, samples, findings, files."""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpeft.board import inside, pages
from jaxpeft.board.catalog import Entry
from jaxpeft.board.follower import Follower
from jaxpeft.board.tail import is_number
from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.report import wording
from jaxpeft.rundir.files import (
    ADAPTER,
    CONFIG,
    ENVIRONMENT,
    METRICS,
    MODEL,
    PLOT,
    PREDICTIONS,
    REPORT,
    SAMPLES,
    SKIPPED,
    SUMMARY,
)
from jaxpeft.rundir.metrics import unit_of_loss
from jaxpeft.rundir.sweep_files import SWEEP, SWEEP_PLOT

OFFERED = (CONFIG, METRICS, SUMMARY, SAMPLES, ENVIRONMENT, REPORT, PLOT, SKIPPED)
RATES = "lr_find.png"  # of a range test
OFFERED += (SWEEP, SWEEP_PLOT, "sweep.csv", "lr_find.json", RATES)
FOLDERS = (ADAPTER, MODEL, PREDICTIONS)
PARTS = ("prompt", "reference", "before", "after")
MOST_SAMPLES = 50
LOGS = {"checkpoints", "logs"}


class Setting(NamedTuple):
    """A key of a configuration.

    Attributes:
        key: its dotted name.
        value: its value as YAML.
        default: the default as YAML; None: it has none.
    """

    key: str
    value: str
    default: str | None


def headlines(found: Mapping[str, Any], entry: Entry) -> list[tuple[str, str, str]]:
    """(name, value, remark) of what a reader looks for first.

    Args:
        found: the run's row, see `pages.row`.
        entry: what is known of it.
    """
    if entry.place.is_sweep:
        done, total = entry.points
        return [("points", f"{done:,} of {total:,}", "have ended")]
    cells = pages.texts(found, found["changed"] or 0.0)
    evaluation = entry.figures.evaluation
    best, step = entry.summary.get("best_eval_loss"), entry.summary.get("best_step")
    accuracy = evaluation.get("eval_accuracy")
    unit = unit_of_loss([entry.figures.training, evaluation])
    shown = [
        ("steps", cells["share"], "optimizer updates"),
        ("training loss", cells["loss"], unit),
        ("evaluation loss", cells["eval_loss"], _at(evaluation)),
        (
            "best evaluation",
            f"{best:.4f}" if is_number(best) else "",
            f"at step {step}",
        ),
        ("token accuracy", "" if accuracy is None else f"{accuracy:.1%}", ""),
        ("learning rate", cells["rate"], "per update"),
        ("speed", cells["speed"], "tokens per second"),
        ("memory", cells["memory"], "now, or the most of the run"),
        ("time left", cells["left"], "at the speed of the last line"),
    ]
    return [one for one in shown if one[1]]


def _at(line: Mapping[str, Any]) -> str:
    return f"after step {line['step']:,}" if line else ""


def samples(folder: Path) -> list[dict[str, str | None]]:
    """What the model answered before training and after, as far as it is there.

    Args:
        folder: the run's directory.
    """
    found = inside.json_value(folder, SAMPLES)
    rows = found if isinstance(found, list) else []
    return [
        {part: None if row.get(part) is None else str(row[part]) for part in PARTS}
        for row in rows[:MOST_SAMPLES]
        if isinstance(row, dict)
    ]


def environment(folder: Path) -> list[tuple[str, str]]:
    """What the run was made with, in words.

    Args:
        folder: the run's directory.
    """
    return wording.rows(inside.json_object(folder, ENVIRONMENT))


def files(folder: Path) -> list[tuple[str, str]]:
    """(name, size) of the files of a run that can be had.

    Args:
        folder: the run's directory.
    """
    names = list(OFFERED)
    for below in FOLDERS:
        try:
            with os.scandir(folder / below) as entries:
                inner = sorted(entry.name for entry in entries)
        except OSError:
            continue
        is_folder = not (folder / below).is_symlink()
        names += [f"{below}/{name}" for name in inner[:100]] if is_folder else []
    found = []
    for name in names:
        if inside.shown(name) != name:
            continue  # no address can name it
        try:
            about = os.stat(folder / name, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            found.append((name, wording.size(about.st_size)))
    return found


def settings(folder: Path) -> tuple[list[Setting], list[str]]:
    """The settings that are not the defaults, and what is wrong with the others.

    Args:
        folder: the run's directory.

    Returns:
        (settings, complaints). Where the configuration is of another version, all
        settings count as chosen.
    """
    from jaxpeft import tree

    try:
        mapping = strict_yaml.load(inside.text(folder, CONFIG), CONFIG)
    except OSError as error:
        return [], [f"{CONFIG} cannot be read ({error.strerror})"]
    except InputError as error:
        return [], list(error.problems)
    try:
        defaults = dict(tree.walk(_defaults(mapping)))
        complaints: list[str] = []
    except InputError as error:
        defaults, complaints = (
            {},
            [
                "this configuration is of another version of jaxpeft: "
                + error.problems[0]
            ],
        )
    chosen = []
    for key, value in tree.walk({str(k): v for k, v in mapping.items()}):
        known = key in defaults
        if not known or strict_yaml.dump_scalar(defaults[key]) != _text(value):
            default = strict_yaml.dump_scalar(defaults[key]) if known else None
            chosen.append(Setting(key, _text(value), default))
    return chosen, complaints


def _text(value: Any) -> str:
    return strict_yaml.dump_scalar(value)


def _defaults(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of all keys, with the components that a configuration chooses."""
    from jaxpeft import config
    from jaxpeft.assembly.configuration import TABLES
    from jaxpeft.config.sections import SECTIONS, RunConfig, chosen

    config.parse(mapping, CONFIG, TABLES)  # raises what is wrong with it
    found: dict[str, Any] = _of_fields(RunConfig)
    for section, cls in SECTIONS.items():
        found[section] = _of_fields(cls)
        if section in TABLES:
            name = chosen(section, mapping.get(section))
            table = TABLES[section]
            parameters = table.parameters(name)
            found[section] |= {
                key: parameters[key].default
                for key in table.keys(name)
                if parameters[key].default is not parameters[key].empty
            }
    return found


def _of_fields(cls: Any) -> dict[str, Any]:
    from pydantic_core import PydanticUndefined

    found = {}
    for name, field in cls.model_fields.items():
        if field.default is not PydanticUndefined:
            default = field.default
            found[name] = list(default) if isinstance(default, tuple) else default
    return found


def findings(folder: Path, ended: bool) -> Sequence[str]:
    """What the curves of a run say of its settings, a sentence each.

    Args:
        folder: the run's directory.
        ended: whether the run is over.
    """
    from jaxpeft import config
    from jaxpeft.assembly.configuration import TABLES
    from jaxpeft.diagnose.finding import Settings
    from jaxpeft.diagnose.findings import diagnose

    about = Settings()
    try:
        mapping = strict_yaml.load(inside.text(folder, CONFIG), CONFIG)
        about = Settings.of(config.parse(mapping, CONFIG, TABLES))
    except (OSError, InputError):
        pass  # the curves still say what they can
    follower = Follower(folder)  # which holds no more lines than curves show
    try:
        follower.read()
    except OSError as error:
        return [f"{METRICS} cannot be read ({error.strerror})"]
    # A line may be of both.
    both = {id(line): line for line in (*follower.training, *follower.evaluation)}
    lines = sorted(both.values(), key=lambda line: line["step"])
    return [str(finding) for finding in diagnose(lines, about, ended=ended)]


def stamps(folder: Path, *names: str) -> tuple[tuple[int, int, int] | None, ...]:
    """What changes with the content of files of a run; None for one that is missing.

    Args:
        folder: the run's directory.
        names: of the files.
    """
    found: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            about = os.stat(folder / name, follow_symlinks=False)
            found.append((about.st_mtime_ns, about.st_size, about.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)

"""A configuration on its way to a run: read, changed key by key, checked, begun."""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxpeft import config
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.board import confine, inside
from jaxpeft.board.catalog import Entry
from jaxpeft.board.jobs import Job, Queue
from jaxpeft.config import paths, strict_yaml
from jaxpeft.config.sections import AUTO
from jaxpeft.errors import InputError
from jaxpeft.lr_find.ramp import FOUND
from jaxpeft.metrics import METRICS
from jaxpeft.rundir.files import CHECKPOINTS, CONFIG
from jaxpeft.rundir.fingerprint import differences

QUICKSTART = "jaxpeft:quickstart.yaml"
RECIPES = "configs"
NAME = "the configuration"
LONGEST = 100  # characters of a name that is made up
KINDS = ("train", "plan", "lr_find", "sweep")
WRITE = ("train", "sweep")  # a folder of their own


def recipes(work: Path) -> dict[str, Path]:
    """The configurations that one can begin with, by name.

    Args:
        work: the folder in which commands are started; those in its `configs/`, and
            those beside the package, are among them.
    """
    found = {}
    for folder in (Path(config.__file__).parents[2] / RECIPES, work / RECIPES):
        for path in sorted(folder.glob("*.yaml")):
            found[path.stem] = path
    return found


def recipe(name: str, work: Path) -> str:
    """The text of a recipe, or of the one that ships.

    Args:
        name: of `recipes`; any other stands for the one that ships.
        work: as for `recipes`.

    Raises:
        InputError: it cannot be read.
    """
    path = recipes(work).get(name) or paths.find(QUICKSTART)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{inside.shown(path.name)}: cannot be read ({error}); mend or remove it"
        ) from None


def of_run(entry: Entry) -> str:
    """The text of a run's configuration; "" where it has none.

    Args:
        entry: the run.
    """
    try:
        return inside.text(entry.place.folder, CONFIG, strict_yaml.MAX_BYTES)
    except OSError:
        return ""


def of_job(job: Job, queue: Queue) -> str:
    """The text of the configuration that a job was given, with the rate it has found.

    Args:
        job: the job.
        queue: has its files.
    """
    options = dict(itertools.pairwise(job.argv))
    path = Path(options.get("--config", ""))
    if path.parent != queue.folder:
        return ""
    try:
        text = inside.text(queue.folder, path.name, strict_yaml.MAX_BYTES)
    except OSError:
        return ""
    out = Path(options.get("--out", ""))
    if job.name == "lr_find" and out.parent == queue.folder:
        found = inside.json_object(queue.folder, f"{out.name}/{FOUND}")
        rate = found.get("suggestion")
        if isinstance(rate, float):
            return changed(text, "optimizer.learning_rate", f"{rate:g}")
    return text


def fresh(text: str, top: Path, work: Path) -> str:
    """The same configuration with an output_dir below a folder where nothing is yet.

    Args:
        text: the configuration.
        top: the folder of runs.
        work: what relative paths are relative to.
    """
    try:
        given = str(strict_yaml.load(text, NAME).get("output_dir") or "run")
    except InputError:
        return text
    if is_inside(given, [top], work) and not os.path.lexists(work / given):
        return text
    # A name may be too long for a file; what could not be made is "not there".
    stem = re.sub(r"-\d+$", "", Path(given).name)[:LONGEST]
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    place = next(top / name for name in names if not os.path.lexists(top / name))
    return changed(text, "output_dir", strict_yaml.dump_scalar(str(place)))


def is_inside(output: str, tops: Sequence[Path], work: Path) -> bool:
    """Whether a run that writes there appears on the board.

    Args:
        output: the configuration's output_dir.
        tops: the folders of runs.
        work: what relative paths are relative to.
    """
    try:
        place = Path(os.path.realpath(work / os.path.expanduser(output)))
    except ValueError:
        return False
    return any(top in place.parents for top in tops)


def changed(text: str, key: str, value: str) -> str:
    """A configuration with one key changed, the rest of its text as it was if it can.

    Args:
        text: the configuration.
        key: the dotted key.
        value: its value as YAML; "": the key is taken out.

    Raises:
        InputError: the text or the value is no YAML.
    """
    new = strict_yaml.parse_scalar(value, key) if value.strip() else None
    mapping = strict_yaml.load(text, NAME)
    section, dot, name = key.partition(".")
    keys = mapping
    if dot:
        inner = mapping.get(section)
        keys = dict(inner) if isinstance(inner, Mapping) else {}
        mapping[section] = keys
    else:
        name = section
    keys.pop(name, None) if not value.strip() else keys.update({name: new})
    if dot and not keys:
        del mapping[section]
    line = "" if not value.strip() else strict_yaml.dump_scalar(new)
    edited = _edited(text, section if dot else "", name, line)
    try:
        if edited is not None and strict_yaml.load(edited, NAME) == mapping:
            return edited
    except InputError:
        pass
    return strict_yaml.dump(mapping)


def _edited(text: str, section: str, name: str, value: str) -> str | None:
    """The text with the line of a key changed, where the key has a line of its own."""
    lines = text.splitlines(keepends=True)
    begin, end, indent = 0, len(lines), ""
    if section:
        heads = [n for n, one in enumerate(lines) if one.startswith(f"{section}:")]
        if len(heads) != 1 or lines[heads[0]].strip() != f"{section}:":
            return None
        begin, indent = heads[0] + 1, "  "
        inner = itertools.takewhile(lambda one: one[:1] in " #\n", lines[begin:])
        end = begin + len(list(inner))
    for number in range(begin, end):
        if lines[number].startswith(f"{indent}{name}:"):
            new = [f"{indent}{name}: {value}\n"] if value else []
            return "".join(lines[:number] + new + lines[number + 1 :])
    if not value or (section and begin == end):
        return None
    return "".join([*lines[:end], f"{indent}{name}: {value}\n", *lines[end:]])


def problems(text: str, tops: Sequence[Path], work: Path) -> list[str]:
    """All that is wrong with a configuration, as the commands would say it.

    Args:
        text: the configuration.
        tops: the folders of runs, in one of which it must write.
        work: what relative paths are relative to.
    """
    try:
        mapping = strict_yaml.load(text, NAME)
        cfg = config.parse(mapping, NAME, TABLES, METRICS)
    except InputError as error:
        # Where another key is wrong, too, the folder is said at once with it.
        return [*error.problems, *_outside(_output(text), tops, work)]
    return _outside(cfg.output_dir, tops, work)


def _output(text: str) -> str | None:
    """The output_dir of a configuration that need not be sound, if it is a text."""
    try:
        found = strict_yaml.load(text, NAME).get("output_dir")
    except InputError:
        return None
    return found if isinstance(found, str) and found else None


def _outside(output: str | None, tops: Sequence[Path], work: Path) -> list[str]:
    if output is None or is_inside(output, tops, work):
        return []
    return [
        f"output_dir: found {output!r}; name a folder below "
        + " or ".join(map(inside.shown, tops))
    ]


def begin(
    kind: str,
    text: str,
    grid: Sequence[str],
    queue: Queue,
    tops: Sequence[Path],
    memory: str = "",
) -> int:
    """Queues a command with a configuration; returns the job's number.

    Args:
        kind: one of `KINDS`.
        text: the configuration.
        grid: for a sweep: texts KEY=A,B,C.
        queue: takes the job.
        tops: the folders of runs.
        memory: for a plan: that of a device, in GB; "": as the device reports it.

    Raises:
        InputError: for all that is wrong with it.
    """
    from jaxpeft.board import grids  # half a second, which the form need not wait for

    if kind not in KINDS:
        raise InputError(f"found {kind!r}; choose one of {', '.join(KINDS)}")
    wrong = problems(text, tops, queue.work)
    grid = [line.strip() for line in grid if line.strip()]
    if kind == "sweep" and wrong:
        wrong += grids.problems(grid, "", Path())
    memory = memory.strip()
    if memory and not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", memory):
        wrong.append(f"memory: found {memory!r}; give a number of GB, such as 24")
    if wrong:
        raise InputError(*wrong)
    cfg = config.parse(strict_yaml.load(text, NAME), NAME, TABLES, METRICS)
    run = Path(os.path.realpath(queue.work / cfg.output_dir))
    if kind == "sweep":
        run = run.with_name(f"{run.name}-sweep")
    confine.check(run, queue.tops)  # it may be there, and be gone on with
    if kind == "sweep" and (wrong := grids.problems(grid, text, run)):
        raise InputError(*wrong)
    axes = [f"--grid={line}" for line in grid]
    if kind in WRITE and (job := _under_way(run, queue)):
        if job.argv[0] == kind and _told(job) == (text, axes):
            return job.number  # it was pressed twice
        raise InputError(
            f"output_dir: job {job.number} is {job.state} with {inside.shown(run)}; "
            "choose another folder, or stop that job first"
        )
    if kind == "train":
        _check_same(cfg, run)
    path = queue.written(text)
    argv = [kind, "--config", str(path)]
    if kind == "plan" and memory:
        argv += ["--device-memory", memory]
    if kind == "lr_find":
        argv += ["--out", str(path.with_suffix(""))]
    if kind == "sweep":
        argv += [*axes, "--out", str(run)]
    return queue.add(argv, str(run))


def _under_way(run: Path, queue: Queue) -> Job | None:
    """The job that waits or works on the folder of a run that is to begin."""
    left = (job for job in queue.jobs() if job.is_left and job.argv[0] in WRITE)
    return next((job for job in left if job.run == str(run)), None)


def _told(job: Job) -> tuple[str, list[str]]:
    """The configuration and the grid of a job that began here."""
    axes = [word for word in job.argv if word.startswith("--grid=")]
    try:
        path = Path(job.argv[job.argv.index("--config") + 1])
        return path.read_text(encoding="utf-8"), axes
    except (ValueError, IndexError, OSError):
        return "", axes


def _check_same(cfg: config.RunConfig, run: Path) -> None:
    """Checks that a run that is there already would be continued, and not refused.

    What the files of its model and data say, only the command itself finds out.
    """
    if not any((run / CHECKPOINTS).glob("[0-9]*")):
        return
    try:
        text = inside.text(run, CONFIG)
        before = config.parse(strict_yaml.load(text, CONFIG), CONFIG, TABLES, METRICS)
    except (InputError, OSError):
        return
    rate = before.optimizer.learning_rate
    if cfg.optimizer.learning_rate == AUTO:  # was found then, and is taken from there
        section = cfg.optimizer.model_copy(update={"learning_rate": rate})
        cfg = cfg.model_copy(update={"optimizer": section})
    one, other = (config.identity(c, TABLES, False) for c in (before, cfg))
    if one != other:
        raise InputError(
            f"output_dir: in {inside.shown(run)} there is a run already, with other "
            f"settings{differences(json.dumps(one), json.dumps(other))}; choose "
            "another folder, or continue that run on its own page"
        )


def converted(text: str) -> tuple[str, list[str]]:
    """A configuration of LLaMA-Factory as ours, and what became of its keys.

    Args:
        text: its YAML.

    Raises:
        InputError: it asks for what cannot be trained here.
    """
    from jaxpeft import convert_config
    from jaxpeft.convert_config.llamafactory import from_llamafactory
    from jaxpeft.convert_config.writing import to_yaml

    draft = from_llamafactory(strict_yaml.load(text, "the file"))
    return to_yaml(draft, "a LLaMA-Factory file", "FILE"), convert_config.report(draft)

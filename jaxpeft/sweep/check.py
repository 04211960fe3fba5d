"""What can be found wrong with a sweep's points before the first of them trains."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxpeft import hardware, hf
from jaxpeft.assembly import configuration, heads, precision, updates
from jaxpeft.assembly.adapter import check_adapter
from jaxpeft.assembly.base import Base, check_length, open_base
from jaxpeft.assembly.places import check_batches, check_offload
from jaxpeft.config import RunConfig
from jaxpeft.data import sources
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.sweep.point import Point
from jaxpeft.sweep.sweep import Sweep

Seen = dict[tuple[str, ...], tuple[Any, Sequence[str]]]


def check(sweep: Sweep) -> None:
    """Checks the points that have not ended, as their runs would, and writes nothing.

    Read are the configurations and, once each, the models' configs and tokenizers;
    neither weights nor records are.

    Args:
        sweep: with all the points that are known so far.

    Raises:
        InputError: for all that is wrong with any of them. What is wrong with every
            point is said once.
    """
    seen: Seen = {}
    problems: list[str] = []
    wrong: dict[str, list[Point]] = {}  # of each complaint, the points
    left = [point for point in sweep.points if not point.ended]
    for point in left:
        try:
            (cfg,) = sweep.configurations([point])
        except InputError as error:
            problems += [*error.problems, *sweep.way_out(point)]
        else:
            for text in dict.fromkeys(complaints(cfg, seen)):
                wrong.setdefault(text, []).append(point)
    stuck: dict[str, Point] = {}
    for text, points in wrong.items():
        shared = len(points) == len(left) > 1
        if shared:
            problems.append(text)
        else:
            problems += [f"{point.name}: {text}" for point in points]
        # What the present grid's points share with the others is no fault of those.
        if not shared or all(map(sweep.way_out, points)):
            stuck.update({point.directory: point for point in points})
    for point in stuck.values():
        problems += sweep.way_out(point)
    if problems:
        raise InputError(*problems)


def complaints(cfg: RunConfig, seen: Seen) -> Iterator[str]:
    """What is wrong with a run, as far as that is known without weights and records.

    Args:
        cfg: the configuration of the run.
        seen: what came of the checks so far, none of which is made twice.
    """

    def attempt(
        key: tuple[str, ...], act: Callable[[], Any]
    ) -> tuple[Any, Sequence[str]]:
        if key not in seen:
            try:
                seen[key] = act(), []
            except InputError as error:
                seen[key] = None, error.problems
        return seen[key]

    cfg = precision.settled(cfg, hardware.current())
    whole, model = cfg.model_dump_json(), cfg.model.model_dump_json()
    yield from attempt(("run", whole), lambda: _check_settings(cfg))[1]
    key = ("named", cfg.objective.name, cfg.data.model_dump_json())
    data, problems = attempt(key, lambda: configuration.named(cfg).data)
    yield from problems
    base, problems = attempt(("model", model), lambda: open_base(cfg.model))
    yield from problems
    objective = cfg.objective.model_dump_json()
    if base is not None and data is not None:
        key = ("head", model, objective)
        base, problems = attempt(key, lambda base=base: _fitted(base, cfg))
        yield from problems
    if base is not None:
        section = cfg.adapter
        key = ("adapter", model, objective, section.model_dump_json())
        yield from attempt(key, lambda: check_adapter(base, section))[1]
        yield from attempt(("length", whole), lambda: check_length(cfg, base))[1]
    start = cfg.adapter.init_from
    if start is not None:
        yield from attempt(("start", start), lambda: hf.resolve(start))[1]
    for one in () if data is None else (*data.train, *(data.eval or ())):
        source = sources.source_of(one)
        yield from attempt(
            ("data", repr(source)), lambda one=source: sources.found(one)
        )[1]


def _fitted(base: Base, cfg: RunConfig) -> Base:
    """The base with the head that the objective wants."""
    objective = configuration.objective(configuration.settled(cfg))
    return heads.fitted(base, objective.head)


def _check_settings(cfg: RunConfig) -> None:
    """Checks what needs neither model nor data."""
    mesh = sharding.make_mesh(**cfg.mesh.model_dump())
    check_batches(cfg, mesh)
    check_offload(cfg, mesh)
    configuration.objective(cfg)
    updates.fused_backward(cfg)

"""Sweeps whose points are chosen as they go, by optuna's samplers."""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError
from jaxpeft.sweep.point import Point
from jaxpeft.sweep.sweep import Sweep

ROUND = 4  # points that are asked for at once, and can train in one program


def spaces(texts: Sequence[str]) -> dict[str, Any]:
    """The spaces that keys are drawn from, of texts such as `seed=int:1:9`.

    `log:a:b` and `uniform:a:b` are numbers from a to b, `int:a:b` whole ones, and
    `a,b,c` is a choice.

    Args:
        texts: of `--space`, `section.key=SPACE`, one for each key.

    Returns:
        {key: its space} as JSON can hold it.

    Raises:
        InputError: for all that is wrong, and where optuna is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError(
            "--search optuna: optuna is not installed: pip install 'jaxpeft[optuna]'"
        )
    space_of, problems = {}, []
    for text in texts:
        key, _, kind = text.partition("=")
        if key in space_of:
            problems.append(f"--space {key}: is given twice; name it once")
        if key == "output_dir":
            problems.append("--space output_dir: each point has its own; use --out DIR")
        try:
            space_of[key] = _space(text, kind)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return space_of


def train(sweep: Sweep, trials: int, seed: int) -> None:
    """Trains points until there are `trials`; each round knows the results so far.

    What it draws depends on the seed and the results alone, so that a sweep that was
    interrupted goes on with the points that it had drawn.

    Args:
        sweep: perhaps with points already.
        trials: how many points there are in the end.
        seed: of the draws.
    """
    sweep.train(sweep.points)
    while len(sweep.points) < trials:
        size = min(sweep.at_once or ROUND, trials - len(sweep.points))
        sweep.train(sweep.add(_ask(sweep, size, seed)))


def _ask(sweep: Sweep, count: int, seed: int) -> list[dict[str, Any]]:
    """The values of so many points, given those that have ended."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(space) for key, space in sweep.axes.items()}
    # Told of the number of points, a seed gives another draw in each round.
    sampler = optuna.samplers.TPESampler(seed=seed + len(sweep.points))
    direction = "maximize" if sweep.judge.prefers_greater else "minimize"
    study = optuna.create_study(sampler=sampler, direction=direction)
    for point in sweep.points:
        study.add_trial(_told(sweep, point, distributions))
    return [study.ask(distributions).params for _ in range(count)]


def _told(sweep: Sweep, point: Point, distributions: dict[str, Any]) -> Any:
    import optuna

    score = sweep.judge.score(point)
    failed = not math.isfinite(score)
    state = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=state.FAIL if failed else state.COMPLETE,
        params=point.values,
        distributions=distributions,
        value=None if failed else score,
    )


def _space(text: str, kind: str) -> dict[str, Any]:
    """A space as JSON can hold it."""
    name, *ends = kind.split(":")
    if name in ("log", "uniform", "int") and len(ends) == 2:
        low, high = (strict_yaml.parse_scalar(end, f"--space {text}") for end in ends)
        numbers = all(
            isinstance(x, int if name == "int" else int | float) for x in (low, high)
        )
        if numbers and low < high and (low > 0 or name != "log"):
            return {"kind": name, "low": low, "high": high}
        raise InputError(
            f"--space {text}: needs two numbers, the smaller one first"
            + (", both above 0" if name == "log" else "")
        )
    choices = strict_yaml.parse_scalar(f"[{kind}]", f"--space {text}")
    if len(choices) < 2:
        raise InputError(
            f"--space {text}: write log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or "
            "VALUE,VALUE,..."
        )
    return {"kind": "choice", "values": choices}


def _distribution(space: dict[str, Any]) -> Any:
    from optuna import distributions

    kind = space["kind"]
    if kind == "choice":
        return distributions.CategoricalDistribution(space["values"])
    if kind == "int":
        return distributions.IntDistribution(space["low"], space["high"])
    return distributions.FloatDistribution(
        float(space["low"]), float(space["high"]), log=kind == "log"
    )

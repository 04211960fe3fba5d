"""The figure that evaluations are compared by: whether there is one of that name."""

import jax

from jaxpeft.assembly.run import Run
from jaxpeft.config.training import EVAL, LOSS
from jaxpeft.errors import InputError, suggest
from jaxpeft.generate.scoring import Scoring


def check(run: Run, scoring: Scoring | None) -> None:
    """Checks `training.metric_for_best_model`, before anything is trained or written.

    Args:
        run: before its first step.
        scoring: of its evaluations, or None.

    Raises:
        InputError: an evaluation gives no figure of that name.
    """
    figure = run.cfg.training.figure
    if figure == LOSS:
        return
    scored = [] if scoring is None else [EVAL + name for name in scoring.metrics]
    if figure in scored:
        return
    known = [*scored, *reported(run)]
    if figure not in known:
        names = [name.removeprefix(EVAL) for name in known]
        name = run.cfg.training.metric_for_best_model
        raise InputError(
            f"training.metric_for_best_model: found {name!r}; an evaluation gives no "
            f"such figure{suggest(name, names)}; metrics are named in "
            "evaluation.metrics, or with --metric"
        )


def reported(run: Run) -> list[str]:
    """The names of the figures that the objective reports: it is asked, not run.

    Args:
        run: before its first step.
    """
    if not run.evaluation:
        return []
    batch = run.on_devices(run.evaluation[0])
    sums = jax.eval_shape(run.eval_step(), run.trainable, run.fixed, batch)
    return list(run.objective.report(jax.tree.map(lambda _: 1.0, sums)))

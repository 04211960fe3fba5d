"""A configuration, opened and checked against all that it can choose from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpeft import adapters, config, metrics, objectives, optim
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.config import ModelSection, RunConfig
from jaxpeft.data import by_name
from jaxpeft.errors import InputError
from jaxpeft.objectives import Objective
from jaxpeft.rundir.files import ADAPTER, CONFIG, MODEL

TABLES = {
    "adapter": adapters.TABLE,
    "optimizer": optim.OPTIMIZERS,
    "schedule": optim.SCHEDULES,
    "objective": objectives.OBJECTIVES,
}


def open_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration in a file, checked against all that it can choose from.

    Args:
        path: the YAML file.
        overrides: texts `section.key=value` that replace keys of the file.
        values: {section.key: the value itself}, which count after the overrides.

    Raises:
        InputError: for all that is wrong with the file, the overrides and the values.
    """
    return config.load(path, overrides, TABLES, values, metrics.METRICS)


def open_run(
    directory: str | Path, overrides: Sequence[str] = ()
) -> tuple[RunConfig, Path | None]:
    """The configuration of a run directory and the folder of its trained adapter.

    After full fine-tuning there is no adapter, and the configuration's base model is
    the one that was trained.

    Args:
        directory: the run's `output_dir`.
        overrides: texts `section.key=value` that replace keys of its configuration.

    Returns:
        (configuration, the adapter's folder or None).

    Raises:
        InputError: where the directory holds no run, or one that has not ended.
    """
    directory = Path(directory)
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(
            f"--run: {str(path)!r} is missing; give the output_dir of a training run"
        )
    cfg = open_config(path, overrides)
    is_model = gives_a_model(cfg.adapter)
    result = directory / (MODEL if is_model else ADAPTER)
    if not result.is_dir():
        raise InputError(
            f"--run: {str(result)!r} is missing: the run has not ended; repeat its "
            "training command to finish it"
        )
    if not is_model:
        return cfg, result
    trained = cfg.model.model_copy(update={"path": str(result)})
    return cfg.model_copy(update={"model": trained}), None


def began(directory: str | Path) -> ModelSection | None:
    """The model that a run began with; None where the directory says none.

    Args:
        directory: the run's `output_dir`.
    """
    path = Path(directory) / CONFIG
    return open_config(path).model if path.is_file() else None


def objective(cfg: RunConfig) -> Objective:
    """The objective that a run minimises, as its section `objective` says.

    Args:
        cfg: the configuration.

    Raises:
        InputError: a number is out of its range, or what it asks for cannot be.
    """
    table = objectives.OBJECTIVES
    given = {
        "continues": cfg.adapter.init_from is not None,
        "base_trains": gives_a_model(cfg.adapter),
    }
    wanted = table.parameters(cfg.objective.choice)
    own = {name: value for name, value in given.items() if name in wanted}
    made = config.build(table, cfg.objective, **own)
    if made.precomputed is not None and cfg.data.streaming:
        raise InputError(
            "objective.precompute_reference: found true with data.streaming, where "
            "nobody has seen all examples before the first step; set one of the two "
            "to false"
        )
    _check_rows(cfg, made.least_rows)
    return made


def _check_rows(cfg: RunConfig, least: int) -> None:
    """Refuses batches with fewer sequences than an objective weighs together."""
    training = cfg.training
    micro = training.batch_size // training.gradient_accumulation_steps
    rows = {
        "training.batch_size": (
            micro,
            " or more for each of the gradient_accumulation_steps",
        ),
        "data.eval_batch_size": (cfg.data.eval_batch_size or least, " or more"),
    }
    problems = [
        f"{key}: a micro-batch has {count} row; {cfg.objective.name} weighs answers "
        f"against those of other prompts beside them: give {least}{more}"
        for key, (count, more) in rows.items()
        if count < least
    ]
    if problems:
        raise InputError(*problems)


def named(cfg: RunConfig) -> RunConfig:
    """The configuration with what describes data sets that it names.

    Args:
        cfg: the configuration.

    Raises:
        InputError: where a data set is not described, or cannot be used by that.
    """
    records = objectives.OBJECTIVES[cfg.objective.name].records
    return cfg.model_copy(update={"data": by_name.looked_up(cfg.data, records)})


def settled(cfg: RunConfig) -> RunConfig:
    """The configuration with what files say of it that are not its own.

    Those are descriptions of data sets, and what the objective takes from the data,
    such as labels.

    Args:
        cfg: the configuration.

    Raises:
        InputError: as of `named`, or the data cannot be read.
    """
    cfg = named(cfg)
    complete = objectives.OBJECTIVES[cfg.objective.name].settled
    if complete is None:
        return cfg
    found = complete(cfg.objective.options, cfg.data)
    objective = cfg.objective.model_copy(update=found)
    return cfg.model_copy(update={"objective": objective})

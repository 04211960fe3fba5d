"""What one section of a configuration asks for and another makes impossible."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.config import evaluation
from jaxpeft.config.components import Table
from jaxpeft.config.sections import chosen
from jaxpeft.config.training import LOSS
from jaxpeft.config.wording import shown


def found(mapping: Mapping[str, Any], tables: Mapping[str, Table]) -> list[str]:
    """What one section asks for and another makes impossible.

    Looks at the mapping, not at the validated sections, so that these problems are
    told together with any others, and only about what the user wrote.

    Args:
        mapping: section, or key at the top -> its keys, or its value.
        tables: section -> what it chooses from.
    """
    data, optimizer, schedule, training = (
        section if isinstance(section, Mapping) else {}
        for section in map(mapping.get, ("data", "optimizer", "schedule", "training"))
    )
    problems = []
    warmup, steps = schedule.get("warmup_steps"), training.get("max_steps")
    if type(warmup) is int and type(steps) is int and warmup > steps > 0:
        problems.append(
            f"schedule.warmup_steps: found {warmup}; must be at most "
            f"training.max_steps, which is {steps}"
        )
    evaluates = any(data.get(key) is not None for key in ("eval", "eval_split"))
    for key in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        if training.get(key) not in (None, False) and not evaluates:
            problems.append(
                f"training.{key}: found {shown(training[key])}; needs evaluation data: "
                f"give data.eval or data.eval_split, or set training.{key} to null"
            )
    if named := evaluation.entries(mapping.get("evaluation")):
        if not evaluates:
            problems.append(
                f"evaluation.metrics: found {shown(named[0][1]['name'])}; needs "
                "evaluation data: give data.eval or data.eval_split, or remove it"
            )
    elif (
        training.get("metric_for_best_model", LOSS) not in (LOSS, "loss")
        and not evaluates
    ):
        problems.append(
            "training.metric_for_best_model: found "
            f"{shown(training['metric_for_best_model'])}; needs evaluation data: give "
            "data.eval or data.eval_split, or remove it"
        )
    if data.get("streaming") is True and type(steps) is not int:
        problems.append(
            "training.max_steps: is missing; with data.streaming nobody knows how many "
            "records an epoch has: give training.max_steps in place of num_epochs"
        )
    scaling = training.get("lr_scaling", "none")
    if scaling != "none" and (why := _rate_of_its_own(optimizer, tables)):
        problems.append(
            f"training.lr_scaling: found {shown(scaling)}; {why}: set it to none"
        )
    return problems


def _rate_of_its_own(optimizer: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    """Why a rate is none that was found at another batch size; empty if it may be."""
    name = chosen("optimizer", optimizer)
    row = tables["optimizer"].found(name) if "optimizer" in tables else None
    if getattr(row, "finds_rate", False):
        return f"{name!r} finds the rate by itself"
    if optimizer.get("relative_step") is True:
        return "optimizer.relative_step takes the rate from the step alone"
    if optimizer.get("learning_rate") == "auto":
        return "optimizer.learning_rate auto is found at this batch size already"
    return ""

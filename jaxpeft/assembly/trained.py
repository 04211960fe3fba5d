"""What is done with a trained model: it is opened and evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxpeft import adapters, console, data, hardware, hf, models, tree
from jaxpeft.assembly import configuration, heads, precision, precomputed
from jaxpeft.assembly.adapter import add_adapter, gives_a_model
from jaxpeft.assembly.base import Base, open_base
from jaxpeft.assembly.places import check_offload
from jaxpeft.assembly.step import Frozen, make_eval_step
from jaxpeft.config import ModelSection, RunConfig
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError
from jaxpeft.objectives import Head, Objective, evaluation
from jaxpeft.objectives.objective import nothing


@dataclass(frozen=True)
class Trained:
    """A base model with its weights and, if it has one, its adapter.

    Attributes:
        base: the opened model.
        params: its weights, adapters in.
        names: of several adapters, each for requests that choose it
            (`adapters.choose`); of one alone, or none, there is nothing to choose.
    """

    base: Base
    params: Mapping[str, Any]
    names: tuple[str, ...] = ()


def load(
    run: str | None,
    model: str | None,
    adapter: str | None,
    dtype: str | None,
    several: Mapping[str, str] | None = None,
    *,
    writes: bool = True,
) -> Trained:
    """A finished run, or a model's folder and perhaps a PEFT adapter for it.

    Args:
        run: the `output_dir` of a finished run, or None.
        model: a model's folder or hub id, in place of a run.
        adapter: the folder or hub id of a PEFT adapter for the model, or None.
        dtype: of the weights; None: the run's, or float32.
        several: {name: folder} of adapters for the model, in place of one.
        writes: whether it has to be one that writes text; false: it may give scores.

    Raises:
        InputError: for what is missing or does not fit together.
    """
    if run is not None:
        cfg, directory = configuration.open_run(run)
        head = configuration.objective(cfg).head
        section = cfg.model.model_copy(update={"dtype": dtype} if dtype else {})
    else:
        section = ModelSection.model_validate(
            {"path": model, "dtype": dtype or "float32"}
        )
        directory = hf.resolve(adapter) if adapter else None
        count = None if directory is None else hf.adapter_labels(directory)
        head = None if count is None else Head(count)
    folders = {name: hf.resolve(path) for name, path in (several or {}).items()}
    base = open_base(section)
    if head is None and base.cfg.num_labels:
        head = Head(base.cfg.num_labels)
    if head is not None and writes:
        raise _writes_no_text(
            f"{'--run' if run is not None else '--model'}: found {run or model!r}", base
        )
    base = heads.fitted(base, head)
    params = _adapted(base.load(), base, directory)
    if not folders:
        return Trained(base, params)
    adapted = {
        name: hf.load_adapter(params, folder, base.cfg)
        for name, folder in folders.items()
    }
    return Trained(base, adapters.several(params, adapted), tuple(folders))


def untrained(section: ModelSection) -> Trained:
    """The base that a run began with, as its configuration has it.

    Args:
        section: the section `model` of the configuration.

    Raises:
        InputError: for what is missing, and for a model that gives scores.
    """
    base = open_base(section)
    if base.cfg.num_labels:
        raise _writes_no_text(f"model.path: found {section.path!r}", base)
    return Trained(base, _adapted(base.load(), base, None))


def to_answer(
    section: ModelSection,
    adapter: Path | None,
    mesh: jax.sharding.Mesh,
    head: Head | None = None,
) -> Trained:
    """A model that writes text, on the mesh by its logical axes.

    Args:
        section: the section `model` of a configuration.
        adapter: a PEFT adapter's folder; None: the base alone.
        mesh: the devices.
        head: of scores, that the objective of its run wants; None: none.

    Raises:
        InputError: for what is missing or does not fit together, and for a model that
            gives scores.
    """
    base = open_base(section)
    labels = None if adapter is None else hf.adapter_labels(adapter)
    if head is not None or labels is not None or base.cfg.num_labels:
        raise _writes_no_text(f"model.path: found {section.path!r}", base)
    return Trained(base, _adapted(base.load(mesh), base, adapter))


def _writes_no_text(place: str, base: Base) -> InputError:
    return InputError(
        f"{place}, which gives sequences scores ({models.scores_named(base.cfg)}) and "
        "writes no text; `jaxpeft evaluate --run DIR --predictions FILE` writes its "
        "scores"
    )


class Evaluated(NamedTuple):
    """A model, and the data to evaluate it on.

    Attributes:
        base: the opened model.
        params: its weights, adapters in.
        held: what the objective kept before the first step.
        objective: what reports.
        batches: the data.
        mesh: the devices.
    """

    base: Base
    params: Mapping[str, Any]
    held: Any
    objective: Objective
    batches: data.EvalBatches
    mesh: jax.sharding.Mesh


def to_evaluate(
    cfg: RunConfig, adapter: Path | None, first: ModelSection | None = None
) -> Evaluated:
    """The model and the evaluation data of a configuration.

    Args:
        cfg: the configuration.
        adapter: a PEFT adapter's folder; None: the one that the run would continue
            from, or the base alone.
        first: the model that a run began with, where `cfg` has the one that it trained;
            what an objective weighs answers against may be made of it.

    Raises:
        InputError: where the configuration names no data to evaluate on, or what it
            names cannot be used.
    """
    if not cfg.data.evaluates:
        raise InputError(
            "data.eval: missing; name the data to evaluate on, for instance "
            "'data.eval={path: eval.json, format: alpaca}'"
        )
    mesh = sharding.make_mesh(**cfg.mesh.model_dump())
    check_offload(cfg, mesh)
    cfg = configuration.settled(precision.settled(cfg, hardware.of_mesh(mesh)))
    cfg = precomputed.in_step(cfg)  # what is used once is worth no store
    objective = configuration.objective(cfg)
    base = heads.fitted(open_base(cfg.model), objective.head)
    size = cfg.training.batch_size // cfg.training.gradient_accumulation_steps
    size = cfg.data.eval_batch_size or size
    sharding.check_batch(size, mesh, "data.eval_batch_size")
    sharding.check_length(cfg.data.max_length, mesh)
    batches = objective.load_eval(
        cfg.data,
        base.tokenizer,
        batch_size=size,
        vocab_size=base.cfg.vocab_size,
    )
    if adapter is None and cfg.adapter.init_from is not None:
        adapter = hf.resolve(cfg.adapter.init_from)
    assert batches is not None  # there are data to evaluate on
    weights = base.load(mesh)
    params = _adapted(weights, base, adapter, cfg.seed)
    held = _held(cfg, objective, base, weights, mesh, first)
    return Evaluated(base, params, held, objective, batches, mesh)


def losses(one: Evaluated) -> dict[str, float]:
    """The losses over the evaluation data, see `Objective.report`.

    Args:
        one: see `to_evaluate`.

    Returns:
        {name: figure}, `eval_loss` among them.
    """
    base, params, held, objective, batches, mesh = one
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    fixed = Frozen(frozen, held)
    # Standard output is the result's alone: nobody is told what is compiled.
    eval_step = make_eval_step(base.cfg, objective)
    step = Compiled(eval_step, "evaluation", lambda text: None, mesh=mesh)
    with console.Work("evaluation, in batches", len(batches)) as work:
        sums = evaluation.streamed(
            (step(trainable, fixed, sharding.placed(batch, mesh)) for batch in batches),
            lambda done: work.advance(),
        )
    return evaluation.figures(objective, sums)


def _held(
    cfg: RunConfig,
    objective: Objective,
    base: Base,
    weights: Any,
    mesh: jax.sharding.Mesh,
    began: ModelSection | None,
) -> Any:
    """What the objective kept before the first step of the run of this configuration.

    Args:
        cfg: the configuration.
        objective: which it names.
        base: the opened model.
        weights: of the base.
        mesh: the devices.
        began: the model that the run began with, if `weights` are not its.
    """
    if objective.held is nothing:
        return nothing(weights)
    if gives_a_model(cfg.adapter):
        other = began is not None and began.path != cfg.model.path
        first = open_base(began).load(mesh) if began and other else weights
    else:
        key, _ = jax.random.split(jax.random.key(cfg.seed))
        first = add_adapter(weights, cfg.adapter, base.cfg, key)
    return sharding.with_numbers(objective.held(first), mesh)


def _adapted(weights: Any, base: Base, adapter: Path | None, seed: int = 0) -> Any:
    """The weights with an adapter, or with the head of a run before it trains."""
    if adapter is not None:
        return hf.load_adapter(weights, adapter, base.cfg)
    key, _ = jax.random.split(jax.random.key(seed))
    return heads.with_head(weights, base.cfg, key)

"""`evaluate --tasks`: the model is opened and asked, and what it answered is kept."""

import argparse
import json
from pathlib import Path

import jax

from jaxpeft import console, hf
from jaxpeft.assembly import configuration, precision, trained
from jaxpeft.assembly.places import check_offload
from jaxpeft.assembly.trained import Trained
from jaxpeft.config import ModelSection
from jaxpeft.devices import programs, sharding
from jaxpeft.errors import InputError
from jaxpeft.evaluate import loading
from jaxpeft.hardware import of_mesh
from jaxpeft.rundir.files import write_json, write_lines

BATCH_SIZE = 8  # without a configuration


def main(args: argparse.Namespace) -> int:
    """Asks a model the tasks that the arguments name; returns the exit code.

    Args:
        args: what the parser of `evaluate` has read.

    Raises:
        InputError: for tasks that cannot be had or fail, and a model that cannot be
            asked.
    """
    names = [name.strip() for name in args.tasks.split(",") if name.strip()]
    choice = loading.Choice(
        names, args.include_path, args.num_fewshot, args.limit, args.apply_chat_template
    )
    loading.installed()
    from jaxpeft.evaluate import tasks  # imports the harness
    from jaxpeft.evaluate.harness_model import HarnessModel

    with console.waiting("looking the tasks up"):
        loaded = loading.load(choice)
    programs.keep()
    model, mesh, size = opened(args)
    asked = HarnessModel(model, batch_size=size, mesh=mesh, chat=choice.chat)
    kept = tasks.new_file(args.run) if args.run else None
    try:
        outcome = tasks.run(asked, loaded, choice)
    except tasks.ScoringError as error:
        raise InputError(_failed(error, kept)) from error
    if args.json:
        console.say(json.dumps(outcome.report))
    else:
        for line in tasks.lines(outcome.report):
            console.say(line)
    if kept is not None:
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, {**outcome.report, "samples": outcome.samples})
        console.aside(f"questions and answers: {kept}")
    if args.predictions:
        path = Path(args.predictions)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, outcome.rows())
    return 0


def opened(args: argparse.Namespace) -> tuple[Trained, jax.sharding.Mesh, int]:
    """The model that the arguments name, its mesh, and how much it is asked at a time.

    Args:
        args: what the parser of `evaluate` has read.

    Raises:
        InputError: where it is missing, or gives scores in place of text.
    """
    if args.model:
        section = ModelSection.model_validate(
            {"path": args.model, "dtype": args.dtype or "float32"}
        )
        adapter = hf.resolve(args.adapter) if args.adapter else None
        mesh = sharding.make_mesh()
        size = args.batch_size or BATCH_SIZE * mesh.size
        return trained.to_answer(section, adapter, mesh), mesh, size
    if args.run:
        cfg, adapter = configuration.open_run(args.run, args.overrides)
    else:
        cfg, adapter = configuration.open_config(args.config, args.overrides), None
        if cfg.adapter.init_from is not None:
            adapter = hf.resolve(cfg.adapter.init_from)
    mesh = sharding.make_mesh(**cfg.mesh.model_dump())
    check_offload(cfg, mesh)
    section = precision.settled(cfg, of_mesh(mesh)).model
    head = configuration.objective(cfg).head
    model = trained.to_answer(section, adapter, mesh, head)
    training = cfg.training
    size = cfg.evaluation.batch_size or cfg.data.eval_batch_size
    size = size or training.batch_size // training.gradient_accumulation_steps
    return model, mesh, args.batch_size or size


def _failed(error: Exception, kept: Path | None) -> str:
    text = f"--tasks: the answers cannot be scored ({error}); mend the task"
    answers = getattr(error, "answers", {})
    if kept is None or not answers:
        return text
    kept.parent.mkdir(exist_ok=True)
    write_json(kept, {"error": str(error), "samples": answers})
    return f"{text}: what was asked and answered is kept in {kept}"

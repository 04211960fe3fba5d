"""`python -m jaxpeft.evaluate`: losses of a run or a config, and scores of answers."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError
from jaxpeft.evaluate import arguments

# What a figure is called, and how it is written; others go by their own names.
FIGURES = {
    "eval_loss": ("loss", "{:.4f} nats per token"),
    "eval_perplexity": ("perplexity", "{:.4f}"),
    "eval_accuracy": ("token accuracy", "{:.2%}"),
    "eval_tokens": ("tokens", "{:,}"),
}
# Those of objectives whose losses are not of single tokens.
OTHERS = {
    "eval_loss": ("loss", "{:.4f}"),
    "eval_accuracy": ("accuracy", "{:.2%}"),
    "eval_examples": ("examples", "{:,}"),
    "eval_pairs": ("pairs", "{:,}"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = _parse(argv)
    cli.begin(f"evaluating {args.run or args.config or args.model}", aside=True)
    if args.tasks:
        from jaxpeft.evaluate import by_tasks

        return by_tasks.main(args)
    return _by_data(args)


def _by_data(args: argparse.Namespace) -> int:
    """Losses over the evaluation data, and scores of the answers to it."""
    # Imported here, so that --help answers at once.
    from jaxpeft import metrics
    from jaxpeft.assembly import configuration, predictions, trained
    from jaxpeft.devices import programs
    from jaxpeft.generate.scoring import Scoring

    first = None
    if args.run:
        first = configuration.began(args.run)
        cfg, adapter = configuration.open_run(args.run, args.overrides)
    else:
        cfg, adapter = configuration.open_config(args.config, args.overrides), None
    made = metrics.made(cfg.evaluation.metrics, args.metric)
    says = configuration.objective(cfg).predictions is not None
    if made and says:
        raise InputError(
            f"--metric: found {args.metric or list(cfg.evaluation.metrics)} with "
            f"objective.name {cfg.objective.name!r}, which gives scores and writes no "
            "text; leave metrics out"
        )
    if args.predictions and not made and not says:
        raise InputError(
            f"--predictions: {cfg.objective.name} says nothing of single records by "
            "itself; have them answered for a --metric: "
            f"{', '.join(metrics.METRICS)}"
        )
    programs.keep()
    model = trained.to_evaluate(cfg, adapter, first)
    scoring = None
    if made:
        size, mesh = model.batches.batch_size, model.mesh
        scoring = Scoring(model.base, model.batches, made, cfg.evaluation, size, mesh)
    result = trained.losses(model)
    if args.predictions and says:
        predictions.write(model, Path(args.predictions))
    if scoring:
        with console.Work("answers, in batches", len(scoring)) as work:
            scored = scoring.run(model.params, lambda done: work.advance(), True)
        result |= scored.figures
        if args.predictions:
            scored.write(Path(args.predictions))
    if args.json:
        console.say(json.dumps(result))
        return 0
    for line in lines(result):
        console.say(line)
    if scoring:
        console.say(scoring.summary())
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser(
        "evaluate",
        "Loss, perplexity and token accuracy over the evaluation data: of "
        "a finished run (--run), or of what a configuration starts from (--config). "
        "With metrics it also answers the questions there, and scores the answers. "
        "With --tasks it answers those of EleutherAI's harness in their place.",
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=cli.path,
        help="the output_dir of a finished run",
    )
    cli.config_arguments(parser, required=False)
    cli.metric_argument(parser)
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        type=cli.path,
        help="a new file for the answers and their scores, or for the scores of "
        "classification and rewards, a JSON object a line",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_harness(parser)
    args = parser.parse_intermixed_args(list(argv))
    if problems := arguments.problems(args):
        raise InputError(*problems)
    return args


def lines(result: Mapping[str, float]) -> list[str]:
    """The lines of a report, one for each figure.

    Args:
        result: {name: figure}, see `Objective.report`.
    """
    known = FIGURES if "eval_tokens" in result else OTHERS
    named = [(*known.get(n, (n.removeprefix("eval_"), "{:.4f}")), n) for n in result]
    width = max(len(name) for name, _, _ in named)
    return [
        f"{name:<{width}}  {pattern.format(result[n])}" for name, pattern, n in named
    ]

"""`python -m jaxpeft.evaluate`: loss, perplexity and accuracy of a run or a config."""

import json
from collections.abc import Mapping, Sequence

from jaxpeft import cli, console
from jaxpeft.errors import InputError

# What a figure is called, and how it is written; others go by their own names.
FIGURES = {
    "eval_loss": ("loss", "{:.4f} nats per token"),
    "eval_perplexity": ("perplexity", "{:.4f}"),
    "eval_accuracy": ("token accuracy", "{:.2%}"),
    "eval_tokens": ("tokens", "{:,}"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = cli.parser(
        "evaluate",
        "Loss, perplexity and token accuracy over the evaluation data: of "
        "a finished run (--run), or of what a configuration starts from (--config).",
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=cli.path,
        help="the output_dir of a finished run",
    )
    cli.config_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(list(argv))
    if bool(args.run) == bool(args.config):
        raise InputError("give one of --run DIR and --config FILE")
    cli.begin(f"evaluating {args.run or args.config}", aside=True)

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import configuration, trained
    from jaxpeft.devices import programs

    if args.run:
        cfg, adapter = configuration.open_run(args.run, args.overrides)
    else:
        cfg, adapter = configuration.open_config(args.config, args.overrides), None
    programs.keep()
    result = trained.evaluate(cfg, adapter)
    if args.json:
        console.say(json.dumps(result))
        return 0
    for line in lines(result):
        console.say(line)
    return 0


def lines(result: Mapping[str, float]) -> list[str]:
    """The lines of a report, one for each figure.

    Args:
        result: {name: figure}, see `Objective.report`.
    """
    named = [(*FIGURES.get(n, (n.removeprefix("eval_"), "{:.4f}")), n) for n in result]
    width = max(len(name) for name, _, _ in named)
    return [
        f"{name:<{width}}  {pattern.format(result[n])}" for name, pattern, n in named
    ]


if __name__ == "__main__":
    raise SystemExit(cli.process(main))

"""`python -m jaxpeft.evaluate`: loss, perplexity and accuracy of a run or a config."""

import argparse
import json
import sys
from collections.abc import Sequence

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxpeft evaluate",
        description="Loss, perplexity and token accuracy over the evaluation data: of "
        "a finished run (--run), or of what a configuration starts from (--config).",
    )
    parser.add_argument("--run", metavar="DIR", help="the output_dir of a finished run")
    cli.config_arguments(parser, required=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(list(argv))
    if bool(args.run) == bool(args.config):
        raise InputError("give one of --run DIR and --config FILE")

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
    console.say(f"loss            {result['eval_loss']:.4f} nats per token")
    console.say(f"perplexity      {result['eval_perplexity']:.4f}")
    console.say(f"token accuracy  {result['eval_accuracy']:.2%}")
    console.say(f"tokens          {result['eval_tokens']:,}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, sys.argv[1:]))

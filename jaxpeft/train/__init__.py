"""`python -m jaxpeft.train --config FILE`: fine-tune a model; continues by itself."""

from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = cli.parser(
        "train",
        "Fine-tune a model as a configuration file says. Repeating the "
        "command continues a run that was interrupted.",
    )
    cli.config_arguments(parser)
    parser.add_argument(
        "--resume",
        choices=("auto", "never", "anyway"),
        default="auto",
        help="auto (default): continue where output_dir holds a checkpoint of the same "
        "run; never: start over, only in an empty or absent directory; anyway: "
        "continue although configuration, data or base have changed",
    )
    parser.add_argument(
        "--programs",
        metavar="FILE",
        type=cli.path,
        help="a file of plan --save, whose program of the step is used in place of "
        "compiling it; it is code, so take it from nobody whose code you would not run",
    )
    cli.metric_argument(parser)
    cli.process_arguments(parser)
    args = parser.parse_intermixed_args(list(argv))
    rank = cli.place(args)
    if rank is None or rank.index == 0:
        cli.begin(f"training as {args.config} says")

    # Imported here, so that --help answers at once.
    from jaxpeft import console
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import cluster, determinism, programs, shipped
    from jaxpeft.train import course

    cfg = configuration.open_config(args.config, args.overrides)
    if cfg.deterministic:
        determinism.require()  # before the devices are looked for
    cluster.join(rank, **cfg.cluster.model_dump())
    programs.keep()
    if args.programs is not None:
        shipped.add(Path(args.programs), console.say)
    course.train(cfg, resume=args.resume, metrics=args.metric)
    return 0

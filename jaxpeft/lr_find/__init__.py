"""`python -m jaxpeft.lr_find --config FILE`: which learning rate to train with."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = _parse(argv)
    if args.known:
        return _carry(args)
    rank = cli.place(args)
    if rank is None or rank.index == 0:
        cli.begin(f"a range test of the learning rate, as {args.config} says")

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import cluster, determinism, programs
    from jaxpeft.lr_find import ramp
    from jaxpeft.rundir.files import CONFIG

    cfg = configuration.open_config(args.config, args.overrides)
    if cfg.deterministic:
        determinism.require()
    cluster.join(rank, **cfg.cluster.model_dump())
    programs.keep()
    start = ramp.START if args.start is None else args.start
    stop = ramp.STOP if args.stop is None else args.stop
    ramp.check(start, stop, args.steps)
    output = Path(args.out or cfg.output_dir)
    if (output / CONFIG).exists():
        output = output / "lr_find"
    run = ramp.prepare(cfg)
    curve = ramp.range_test(run, start=start, stop=stop, steps=args.steps, keep=False)
    if cluster.is_primary():
        ramp.write_lines(curve, output)  # also where nothing can be suggested
    test = ramp.conclude(curve, cfg)
    if cluster.is_primary():
        test.write(output, f"learning-rate range test, {cfg.optimizer.name}")
    for line in test.describe():
        console.say(line)
    console.say(f"plot: {output / ramp.PLOT}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.parser(
        "lr_find",
        "Learning-rate range test: a few of the run's own steps while the "
        "rate rises from --start to --stop, and the rate that the losses suggest. It "
        "leaves no other trace than lr_find.json, lr_find.jsonl and lr_find.png. With "
        "--from nothing is run: the rate of another run is carried over by rules.",
    )
    cli.config_arguments(parser, required=False)
    parser.add_argument(
        "--from",
        dest="known",
        metavar="RUN",
        type=cli.path,
        help="the output_dir of a run: its rate is carried over to --config or, "
        "without, to its own configuration with the given keys replaced",
    )
    parser.add_argument("--start", type=float, help="default: 1e-6")
    parser.add_argument("--stop", type=float, help="default: 1e-1")
    parser.add_argument(
        "--steps",
        metavar="N",
        type=int,
        help="default: 50",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=cli.path,
        help="where to write; where a run is, in its lr_find/ (default: output_dir)",
    )
    cli.process_arguments(parser)
    args = parser.parse_intermixed_args(list(argv))
    if args.known:
        for name in ("start", "stop", "steps", "out"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} goes with a range test, and --from runs none")
    elif args.config is None:
        parser.error("the following arguments are required: --config")
    return args


def _carry(args: argparse.Namespace) -> int:
    """Says how the rate of a run moves to other settings."""
    cli.begin(f"the learning rate of {args.known}, carried over", aside=True)
    from jaxpeft import hf, optim
    from jaxpeft.assembly import configuration, updates
    from jaxpeft.lr_find import transfer
    from jaxpeft.rundir.files import CONFIG

    path = Path(args.known) / CONFIG
    if not path.is_file():
        raise InputError(f"--from: {str(path)!r} is missing; give a run's output_dir")
    known = configuration.open_config(path)
    wanted = configuration.open_config(args.config or path, args.overrides)
    rate = known.optimizer.learning_rate
    if known.optimizer.is_auto or optim.OPTIMIZERS[known.optimizer.name].finds_rate:
        raise InputError(
            f"--from: {str(path)!r} has optimizer.learning_rate {rate} with "
            f"{known.optimizer.name}, which is no rate to carry over"
        )
    sides = [
        transfer.Side(c, hf.resolve(c.model.path, weights=False))
        for c in (known, wanted)
    ]
    found = transfer.moves(*sides)
    rate = updates.learning_rate(known)
    factor = updates.learning_rate(wanted.at_rate(1.0))
    for line in transfer.describe(Path(args.known), rate, found, factor):
        console.say(line)
    return 0

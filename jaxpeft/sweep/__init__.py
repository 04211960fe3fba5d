"""`python -m jaxpeft.sweep --config FILE --grid KEY=A,B,C`: many runs, one table."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError
from jaxpeft.rundir import sweep_files

TRIALS = 20


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = _parser().parse_intermixed_args(list(argv))
    _check_options(args)
    cli.begin(f"a sweep over {args.config}")

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import determinism, programs
    from jaxpeft.rundir import files, sinks
    from jaxpeft.rundir.lock import RunLock
    from jaxpeft.sweep import grid, halving, search, table, verdict
    from jaxpeft.sweep import sweep as sweeping
    from jaxpeft.sweep.check import check

    axes = search.spaces(args.space) if args.search else grid.axes(args.grid)
    base = configuration.open_config(args.config, args.overrides)
    if base.deterministic:
        determinism.require()
    programs.keep()
    sinks.require(base.training.report_to)
    directory = Path(args.out or base.output_dir + "-sweep")
    sweep = sweeping.Sweep(
        *(args.config, args.overrides, directory, axes, args.at_once, args.halving)
    )
    if args.search:
        sweep.trials = args.trials or TRIALS
    else:
        sweep.add(grid.points(axes))
    check(sweep)  # all complaints, before anything is written
    plan = halving.prepare(sweep, args.halving) if args.halving else None
    with RunLock(directory) as lock:
        lock.begin()
        left = sum(not point.ended for point in sweep.points)
        if sweep.points and not left and not args.search:
            console.say(f"all {len(sweep.points)} points have ended: nothing to train")
        if sweep.trials is not None:
            search.train(sweep, sweep.trials, base.seed)
        elif plan is not None:
            plan.train()
        else:
            sweep.train(sweep.points)
        sweep.save()
        sweep.draw()
    for tell in (table.lines, verdict.over_seeds, verdict.advice):
        for line in tell(sweep):
            console.say(line)
    for name in (sweeping.TABLE, sweep_files.SWEEP_PLOT, files.REPORT):
        console.say(str(directory / name))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "sweep",
        "Train every combination of the values that --grid names, and "
        "print a table, best first. Points that differ only in learning rate, weight "
        "decay, seed, rank, lora_alpha, the schedule or the objective's numbers "
        "(beta and the like) train together: one program, one frozen base in memory. "
        "Repeating the command continues a sweep that was interrupted.",
    )
    cli.config_arguments(parser)
    parser.add_argument(
        "--grid",
        metavar="KEY=A,B,C",
        action="append",
        default=[],
        help="a key of the configuration and its values, such as "
        "optimizer.learning_rate=1e-4,3e-4,1e-3; give it several times for all "
        "combinations",
    )
    parser.add_argument(
        "--search",
        choices=("optuna",),
        help="choose the points by the results so far, from --space, instead of a grid",
    )
    parser.add_argument(
        "--space",
        metavar="KEY=SPACE",
        action="append",
        default=[],
        help="for --search: KEY=log:1e-5:1e-2, uniform:0:0.1, int:4:64 or a,b,c",
    )
    parser.add_argument(
        "--trials",
        metavar="N",
        type=int,
        help=f"for --search: points in all (default {TRIALS})",
    )
    parser.add_argument(
        "--halving",
        metavar="FACTOR",
        type=int,
        help="drop points on the way: at a few evaluations one of FACTOR goes on, and "
        "the best alone train to the end (successive halving; needs data.eval and "
        "training.eval_steps)",
    )
    parser.add_argument(
        "--at-once",
        metavar="N",
        type=int,
        help="train at most so many points in one program (default: all that can, but "
        "one with method full, of which each point holds a copy)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=cli.path,
        help="the sweep's directory (default: output_dir with -sweep behind it)",
    )
    return parser


def _check_options(args: argparse.Namespace) -> None:
    """Checks that the options go together; raises InputError otherwise."""
    problems = []
    if args.search and (args.grid or not args.space):
        problems.append("--search: needs --space KEY=SPACE, and no --grid")
    if not args.search and (not args.grid or args.space or args.trials):
        problems.append(
            "--grid: is missing; give --grid section.key=value,value,... (--space and "
            "--trials go with --search optuna)"
        )
    if args.search and args.halving is not None:
        problems.append(
            "--halving: goes with --grid, all of whose points it compares; leave it "
            "out with --search, which chooses points by what came of others"
        )
    if args.halving is not None and args.halving < 2:
        problems.append(
            f"--halving: found {args.halving}; give 2 or more: of so many points one "
            "goes on at each rung (3 is usual), or leave it out"
        )
    for name in ("at_once", "trials"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = "--" + name.replace("_", "-")
            problems.append(f"{option}: found {value}; give 1 or more")
    if problems:
        raise InputError(*problems)

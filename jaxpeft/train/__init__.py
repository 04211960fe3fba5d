"""`python -m jaxpeft.train --config FILE`: fine-tune a model; continues by itself."""

import os
import signal
from collections.abc import Sequence

from jaxpeft import cli
from jaxpeft.errors import EXIT_PREEMPTED


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
    cli.process_arguments(parser)
    args = parser.parse_intermixed_args(list(argv))
    rank = cli.place(args)
    if rank is not None:
        # Until JAX takes over: nothing is begun, and the same command begins it.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_PREEMPTED))

    # Imported here, so that --help answers at once.
    from jaxpeft.assembly import configuration
    from jaxpeft.devices import cluster, determinism, programs
    from jaxpeft.train import course

    cfg = configuration.open_config(args.config, args.overrides)
    if cfg.deterministic:
        determinism.require()  # before the devices are looked for
    cluster.join(rank, **cfg.cluster.model_dump())
    programs.keep()
    course.train(cfg, resume=args.resume)
    return 0

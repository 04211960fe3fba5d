"""`python -m jaxpeft.diagnose --run DIR`: what a run's metrics say of its settings."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import cli, console
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import METRICS
from jaxpeft.rundir.sweep_files import SWEEP


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code.

    Args:
        argv: the command line behind the command's name.

    Raises:
        InputError: there are no metrics of a run.
    """
    parser = cli.parser(
        "diagnose",
        "What the metrics of a run say of its settings, in plain words "
        "with the numbers, each with a remedy. The run may still be under way.",
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=cli.path,
        required=True,
        help="the output_dir of a run",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    args = parser.parse_args(list(argv))
    metrics = Path(args.run) / METRICS
    if not metrics.is_file():
        raise InputError(
            f"--run: {str(metrics)!r} is missing; give "
            + (
                "one of the sweep's points/"
                if (metrics.parent / SWEEP).is_file()
                else "the output_dir of a training run"
            )
        )

    # Imported here, so that --help answers at once.
    from jaxpeft.diagnose import findings
    from jaxpeft.rundir.metrics import read_metrics

    noticed = findings.of_run(Path(args.run))
    if args.json:
        console.say(json.dumps([dataclasses.asdict(finding) for finding in noticed]))
        return 0
    for finding in noticed:
        console.say(str(finding))
    logged = len(read_metrics(metrics)[0])
    if logged < findings.FEWEST:
        console.say(f"{logged} logged steps are too few to say more")
    elif not noticed:
        console.say(f"nothing to remark in {logged} logged steps")
    return 0

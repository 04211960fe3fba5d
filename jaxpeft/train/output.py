"""What may lie in the directory that a run is to write to."""

from pathlib import Path

from jaxpeft.errors import InputError
from jaxpeft.lr_find.ramp import FILES
from jaxpeft.rundir.files import ADAPTER, CHECKPOINTS, MODEL
from jaxpeft.rundir.lock import ENDED, LOCK
from jaxpeft.rundir.sweep_files import SWEEP


def check(output: Path, resume: str) -> None:
    """Checks that the output directory allows what was asked for.

    Args:
        output: the run's directory.
        resume: as for `train`.

    Raises:
        InputError: where it is a file, where it is not empty and "never" was asked for,
            or where it holds a sweep, or a result and nothing to continue from.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"output_dir: {str(output)!r} is a file; name a directory")
    if not output.is_dir():
        return
    ours = {LOCK, ENDED, *FILES}  # a range test there is no run
    names = [entry.name for entry in output.iterdir() if entry.name not in ours]
    if names and resume == "never":
        raise InputError(
            f"output_dir: {str(output)!r} is not empty, and --resume never starts over "
            "only in an empty directory; choose another one, or empty it yourself"
        )
    if SWEEP in names:
        raise InputError(
            f"output_dir: {str(output)!r} holds a sweep, of which training would "
            "overwrite the report; choose another directory"
        )
    trained = [name for name in (ADAPTER, MODEL) if name in names]
    if trained and CHECKPOINTS not in names:
        raise InputError(
            f"output_dir: {str(output)!r} holds a trained {trained[0]} and no "
            "checkpoint to continue from; training would overwrite it: choose another "
            "directory"
        )

"""The states of points that train in stretches, each stretch in another company.

Between two stretches every point has a checkpoint of its own, without the padding of
the program that it was in, so that the next one may hold other points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxpeft import console
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.step import TrainState
from jaxpeft.errors import InputError
from jaxpeft.rundir.checkpoint import Checkpoints
from jaxpeft.sweep import joint_step, padding
from jaxpeft.train.standing import Standing

SECONDS, POSITION = "seconds", "position"


class Stacked(Protocol):
    """The steps of several runs, whose states are stacked: a `joint.Together`.

    Attributes:
        runs: the runs.
        saved: `state`, all states stacked, and `best`, the best parameters or None.
    """

    runs: Sequence[Run]
    saved: dict[str, Any]

    def part(self, number: int) -> dict[str, Any]:
        """What is saved of one run, in the structure of the first and its padding."""
        ...


@dataclass(frozen=True)
class Stretch:
    """A part of the course of several points.

    Attributes:
        until: the step that it ends with; None: the last one.
        folders: of each point, where its state is kept between two stretches.
        since: the step that the stretch before ended with; None: there was none.
    """

    until: int | None
    folders: Sequence[Path]
    since: int | None = None


def gathered(
    program: Stacked,
    stretch: Stretch | None,
    fingerprints: Sequence[dict[str, str]],
) -> tuple[Any, dict[str, Any]] | None:
    """The stacked states of points that go on, and their positions for `follow`.

    Args:
        program: of the points, before its first step.
        stretch: knows where each was kept; None: they train in one go.
        fingerprints: of the points.

    Returns:
        (what the program saves, the note of a checkpoint); None before the first
        stretch, and, with a warning, where a state is lost.

    Raises:
        InputError: the states are of unlike steps.
    """
    found: list[Any] = []
    if stretch is None:
        return None
    for number, fingerprint in enumerate(fingerprints):
        with _kept(stretch, number, fingerprint) as checkpoints:
            found.append(checkpoints.restore(_abstract(program, number)))
    lost = [path for path, one in zip(stretch.folders, found, strict=True) if not one]
    if lost:
        if stretch.since is not None or len(lost) < len(found):
            console.warn(
                f"{', '.join(map(str, lost))}: the paused state is missing; its "
                "program begins again at step 0, with all of its points"
            )
        return None
    saved = [one[0] for one in found]
    if len(steps := {int(one["state"].step) for one in saved}) > 1:
        raise InputError(
            "--at-once: the points of one program have paused after unlike steps, "
            f"{' and '.join(map(str, sorted(steps)))}; repeat the command with the "
            "--at-once that it was interrupted with"
        )
    notes = [one[1] for one in found]
    positions = {str(n): note[POSITION] for n, note in enumerate(notes)}
    if len(notes) == 1:  # a lone run's stands by itself, see `standing.positions`
        positions = notes[0][POSITION]
    stacked = jax.tree.map(
        lambda x, old: jax.device_put(x, old.sharding),
        joint_step.stacked(saved),
        program.saved,
    )
    return stacked, {SECONDS: max(note[SECONDS] for note in notes), **positions}


def keep(
    program: Stacked,
    stretch: Stretch,
    number: int,
    standing: Standing,
    fingerprint: dict[str, str],
    seconds: float,
) -> None:
    """Keeps the state of a point at the end of a stretch.

    Args:
        program: of the points, after its last step.
        stretch: that has ended.
        number: of the point in it.
        standing: how it stands.
        fingerprint: of the point.
        seconds: that it has taken so far.
    """
    leaves = jax.tree.leaves(program.part(number))
    own, structure = jax.tree.flatten(_abstract(program, number))
    state = jax.tree.unflatten(structure, map(padding.cut, leaves, own))
    step = int(state["state"].step)
    note: Mapping[str, Any] = {SECONDS: seconds, POSITION: standing.position()}
    with _kept(stretch, number, fingerprint) as checkpoints:
        if checkpoints.latest() != step:  # else it was killed right behind
            checkpoints.save(step, state, note)


def _kept(stretch: Stretch, number: int, fingerprint: dict[str, str]) -> Checkpoints:
    folder = stretch.folders[number]
    return Checkpoints(folder, save_total_limit=1, fingerprint=fingerprint)


def _abstract(program: Stacked, number: int) -> dict[str, Any]:
    """What is kept of a point, in shapes: at its own rank, in its own structure."""
    run = program.runs[number]

    def create(trainable: Any) -> TrainState:
        scales = run.base.scales_loss
        return TrainState.create(trainable, run.tx, run.key, scales)

    state = jax.eval_shape(create, run.trainable)
    best = None if program.saved["best"] is None else run.trainable
    return {"state": state, "best": best}

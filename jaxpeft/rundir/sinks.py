"""Where metrics go beside the run directory: TensorBoard, Weights & Biases, trackio.

Names of metrics are those that users of transformers know: `train/loss`, `eval/loss`.
Nothing is sent but the lines of `metrics.jsonl` and the configuration.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxpeft import console
from jaxpeft.errors import InputError
from jaxpeft.rundir.files import METRICS, read_json, write_json
from jaxpeft.rundir.metrics import read_metrics

SINKS_FILE = "sinks.json"
PROJECT = "jaxpeft"  # of services that sort runs into projects
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
# What wandb would send of its own accord; names that a version lacks are left out.
WANDB_SETTINGS = {
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class Sink(Protocol):
    """A place that takes the entries of a run one by one."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers of a step, by the names that sinks give them."""
        ...

    def close(self) -> None:
        """Ends the sink's part of the run."""
        ...


class TensorBoard:
    """Event files under `tensorboard/` of the run directory.

    Args:
        output: the run directory.
        config: the run's configuration, shown as text.
        state: not used: what was written of the steps to come is hidden instead.
        first: the step after which the run continues; None: it begins.
    """

    def __init__(self, output: Path, config: dict, state: dict, first: int | None):
        from tensorboardX import SummaryWriter

        # What an earlier process wrote of the steps to come is hidden.
        purge = 0 if first is None else first + 1
        # Its file names count whole seconds, and it overwrites one of the same name.
        self._writer = SummaryWriter(
            str(output / "tensorboard"),
            purge_step=purge,
            filename_suffix=f".{purge:09d}",
        )
        if first is None:
            text = "\n".join(
                f"    {x}" for x in json.dumps(config, indent=2).split("\n")
            )
            self._writer.add_text("configuration", text, 0)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the numbers of a step through to the event file."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run must not lose what it will not write again

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; its id, kept in the run directory, continues it.

    WANDB_PROJECT, WANDB_NAME and WANDB_MODE=offline work as everywhere.

    Args:
        output: the run directory.
        config: the run's configuration.
        state: the run's `id`, and up to which steps lines were `sent`.
        first: the step after which the run continues; None: it begins.
    """

    def __init__(self, output: Path, config: dict, state: dict, first: int | None):
        import wandb

        known = wandb.Settings.model_fields
        settings = {k: v for k, v in WANDB_SETTINGS.items() if k in known}
        self._sent = state["sent"]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", output.resolve().name),
            id=state["id"],
            resume="allow",
            dir=str(output),
            config=config,
            settings=wandb.Settings(**settings),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Sends the numbers of a step, unless an earlier process did."""
        if not _was_sent(self._sent, step, values):
            self._run.log({**values, "train/global_step": step}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class Trackio:
    """A run in trackio's local database, or where TRACKIO_SPACE_ID says.

    Args:
        output: the run directory.
        config: the run's configuration.
        state: the run's `id`, and up to which steps lines were `sent`.
        first: the step after which the run continues; None: it begins.
    """

    def __init__(self, output: Path, config: dict, state: dict, first: int | None):
        import trackio

        self._sent = state["sent"]
        self._run = trackio.init(
            os.environ.get("TRACKIO_PROJECT", PROJECT),
            # Folders of different sweeps have the same names, and runs go by theirs.
            name=f"{output.resolve().name}-{state['id'][:6]}",
            config=config,
            resume="never" if first is None else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs the numbers of a step, unless an earlier process did."""
        if not _was_sent(self._sent, step, values):
            self._run.log(values, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


SINKS: dict[str, Callable[[Path, dict, dict, int | None], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Guarded:
    """A sink whose failures, of a network for instance, never end a run.

    Args:
        name: the sink's name, for a warning.
        open_sink: makes the sink; it may fail, too.
    """

    def __init__(self, name: str, open_sink: Callable[[], Sink]):
        self._name, self._sink = name, None
        self._sink = self._try(open_sink)

    def write(self, entry: dict[str, Any]) -> None:
        """Passes on a line of the metrics; null is left out.

        Args:
            entry: {name: number or null}, `step` among them.
        """
        sink, values = self._sink, renamed(entry)
        if sink is not None and values:
            self._try(lambda: sink.write(int(entry["step"]), values))

    def close(self) -> None:
        """Ends the sink's run."""
        if self._sink is not None:
            self._try(self._sink.close)
        self._sink = None

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - whatever a service does, go on
            self._sink = None
            told = str(error).strip().splitlines()
            console.warn(
                f"training.report_to: {self._name} failed and gets no more lines of "
                f"this run: {type(error).__name__}{f': {told[0]}' if told else ''}"
            )


def require(names: Iterable[str]) -> None:
    """Checks that the packages of sinks are installed.

    Args:
        names: as in the configuration.

    Raises:
        InputError: a package is not installed; every such one is named.
    """
    missing = [name for name in names if name in MODULES and not _installed(name)]
    if missing:
        raise InputError(
            *(
                f"training.report_to: found {name!r}, which needs the package "
                f"{MODULES[name]}; pip install 'jaxpeft[{name}]', or leave it out"
                for name in missing
            )
        )


def open_all(
    names: Sequence[str], output: Path, config: dict[str, Any], first: int | None
) -> list[Guarded]:
    """The sinks of a run, to be opened before its metrics are cut back.

    Args:
        names: as in the configuration; "all" stands for those that are installed.
        output: the run directory.
        config: the run's configuration.
        first: the step after which the run continues; None: it begins.
    """
    if "all" in names:
        names = [name for name in SINKS if _installed(name)]
    if not names:
        return []
    state = _state(output, first)
    return [
        Guarded(name, lambda make=SINKS[name]: make(output, config, state, first))
        for name in names
    ]


def renamed(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the metrics by the names that sinks give them."""
    return {
        f"eval/{key.removeprefix('eval_')}"
        if key.startswith("eval_")
        else f"train/{key}": value
        for key, value in entry.items()
        if key != "step" and value is not None
    }


def _state(output: Path, first: int | None) -> dict[str, Any]:
    """The run's id, and up to which steps earlier processes have sent lines.

    A resumed run computes some steps again, to the same values: services that cannot
    take lines back are spared them. Kept in a file, since the metrics are cut back.
    """
    path = output / SINKS_FILE
    earlier = read_json(path) if first is not None else None
    state = earlier or {"id": uuid.uuid4().hex[:12], "sent": {"train": -1, "eval": -1}}
    if first is not None:
        for kind, lines in zip(("train", "eval"), read_metrics(output / METRICS)):
            steps = [int(line["step"]) for line in lines]
            # Of a run that began without sinks, these were never sent.
            steps = steps if earlier else [step for step in steps if step <= first]
            state["sent"][kind] = max([state["sent"][kind], *steps])
    write_json(path, state)
    return state


def _was_sent(sent: dict[str, int], step: int, values: dict[str, float]) -> bool:
    return step <= sent["eval" if "eval/loss" in values else "train"]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(MODULES[name]) is not None

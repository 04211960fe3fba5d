"""Checkpoints of the trainable state: Orbax writes them, a manifest seals them.

A step is written as `<step>.unsealed` and gets its plain number as a name only when all
of it is on the disk under a manifest. So whatever moment a process dies at, a folder
with a plain number was complete once, and if its manifest does not fit it is damaged.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxpeft import replacing
from jaxpeft.console import warn
from jaxpeft.errors import InputError
from jaxpeft.rundir import manifest
from jaxpeft.rundir.fingerprint import differences
from jaxpeft.rundir.orbax_writer import make_writer
from jaxpeft.rundir.stored_leaves import (
    abstract_leaf,
    compare_layout,
    empty_leaf,
    layout,
    named_leaves,
)

State = TypeVar("State")

_NONE, _ALL_DAMAGED = -1, -2
_STEP = re.compile(r"0|[1-9][0-9]*")
_LEFTOVER = re.compile(r"[0-9]+\.(unsealed|deleting)(\..*)?")


class CheckpointError(InputError, OSError):
    """A checkpoint could not be stored: no space, no permission, a failing disk."""


class Checkpoints:
    """The checkpoints of one run, one sealed folder a step.

    Only what trains is stored: a state is any pytree of JAX arrays, typed keys and
    `None` holes. One process writes a directory at a time (see `RunLock`); within a
    distributed run every process calls every method.

    Args:
        directory: made at the first save; nothing is written before.
        save_total_limit: sealed steps to keep, the newest ones; None keeps all.
        fingerprint: what a resumed run must have in common with the saved one, such as
            the digests of `data` and `base`; where it is the JSON of settings, what
            differs is named.

    Attributes:
        directory: the absolute path of the folder that holds the steps.

    Raises:
        InputError: `save_total_limit` is below 1.
    """

    def __init__(
        self,
        directory: Path,
        *,
        save_total_limit: int | None,
        fingerprint: dict[str, str],
    ):
        if save_total_limit is not None and save_total_limit < 1:
            raise InputError(
                f"training.save_total_limit is {save_total_limit}; give 1 or more, or "
                "null to keep every checkpoint"
            )
        # Orbax needs absolute paths.
        self.directory = Path(directory).absolute()
        self._limit = save_total_limit
        self._fingerprint = dict(fingerprint)
        self._newest: int | None = None
        self._damaged: list[int] = []
        self._sealing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._orbax = make_writer()

    def save(
        self, step: int, state: Any, extra: Mapping[str, Any], keep: int | None = None
    ) -> bool:
        """Starts to write a step.

        The arrays are copied before this returns, so the caller may donate them; the
        writing and sealing go on in the background, and then older steps beyond the
        limit are deleted. Steps that `latest` found damaged make way.

        Args:
            step: the steps taken so far, the name of the checkpoint.
            state: the tree of arrays to store.
            extra: kept beside them as JSON.
            keep: a step that stays beyond the limit; None: no such one.

        Returns:
            False if the step is there already, else True.

        Raises:
            CheckpointError: this save cannot begin, or the one before could not be
                stored.
            InputError: a step of that number is there and is not of this run.
            TypeError: `extra` is not JSON.
        """
        self.wait()
        if step == self._newest:
            return False
        leaves = named_leaves(state)
        record = {
            "extra": extra,
            "fingerprint": self._fingerprint,
            "layout": layout(leaves),
        }
        # Encoded here, a fault in `extra` meets its caller, and later changes do not.
        record = json.loads(json.dumps(record))
        arrays = {name: leaf for name, leaf in leaves.items() if leaf.size}
        with self._reporting(step):
            if _is_primary():
                self._make_way(step)
            self._orbax.save(
                self._unsealed(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(arrays),
                    record=ocp.args.JsonSave(record),
                ),
            )
        self._sealing = self._thread.submit(self._seal, step, keep)
        return True

    def latest(self) -> int | None:
        """The newest intact step, or None if there are no steps.

        Each damaged step on the way is named in a warning.

        Raises:
            InputError: there are steps and none is intact; beginning anew would
                overwrite the run.
            CheckpointError: the last save could not be stored.
        """
        self.wait()
        newest, problems = _NONE, []
        if _is_primary():
            newest, problems = self._search()
        if jax.process_count() > 1:
            newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))
        if newest == _ALL_DAMAGED:
            raise InputError(
                f"{self.directory}: no checkpoint is intact, and to begin at step 0 "
                "would overwrite the run; put a good copy of one back, or choose "
                "another output_dir",
                *problems,
            )
        self._newest = None if newest == _NONE else newest
        return self._newest

    def restore(
        self, abstract_state: State, *, check_fingerprint: bool = True
    ) -> tuple[State, dict[str, Any]] | None:
        """The state and extra of the newest intact step; None without steps.

        Args:
            abstract_state: the state's tree, with arrays or `jax.ShapeDtypeStruct`s as
                leaves; their shapes, dtypes and shardings are those of the result.
            check_fingerprint: whether another config, data or base is an error.

        Raises:
            InputError: no step is intact, the fingerprint differs, or the stored tree,
                shapes or dtypes are not those of `abstract_state`.
            CheckpointError: the last save could not be stored.
        """
        step = self.latest()
        if step is None:
            return None
        folder = self.directory / str(step)
        record = self._record(folder)
        if check_fingerprint:
            self._compare_fingerprint(folder, record["fingerprint"])

        return self._read(folder, record, abstract_state), record["extra"]

    def restore_step(self, step: int, abstract_state: State) -> State | None:
        """The state of a step of this run if it is intact; else None, with a warning.

        Args:
            step: the steps taken when it was saved.
            abstract_state: the state's tree, with arrays or `jax.ShapeDtypeStruct`s as
                leaves; their shapes, dtypes and shardings are those of the result.

        Raises:
            InputError: the stored tree, shapes or dtypes are not those of
                `abstract_state`.
            CheckpointError: the last save could not be stored.
        """
        self.wait()
        folder, intact = self.directory / str(step), False
        if _is_primary():
            problems = manifest.verify(folder) if folder.is_dir() else ["it is gone"]
            intact = not problems
            if problems:
                warn(f"checkpoint {folder} cannot be used: {problems[0]}")
        if jax.process_count() > 1:
            intact = bool(multihost_utils.broadcast_one_to_all(np.int32(intact)))
        return (
            self._read(folder, self._record(folder), abstract_state) if intact else None
        )

    def _record(self, folder: Path) -> dict[str, Any]:
        """What stands beside the arrays of a step."""
        asked = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._orbax.restore(folder, args=asked)["record"]

    def _read(self, folder: Path, record: dict[str, Any], abstract: State) -> State:
        """The arrays of a step, in the places of those of `abstract`."""
        leaves = named_leaves(abstract)
        compare_layout(folder, record["layout"], layout(leaves))
        target = {
            name: abstract_leaf(leaf) for name, leaf in leaves.items() if leaf.size
        }
        arrays = self._orbax.restore(
            folder,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                )
            ),
        )["state"]
        restored = [
            arrays[name] if leaf.size else empty_leaf(leaf)
            for name, leaf in leaves.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract), restored)

    def wait(self) -> None:
        """Blocks until the last save is sealed.

        Raises:
            CheckpointError: it could not be stored.
        """
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def close(self) -> None:
        """Waits for the last save, and releases the threads in any case.

        Raises:
            CheckpointError: the last save could not be stored.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _search(self) -> tuple[int, list[str]]:
        """The newest intact step or a code for none, and the problems on the way."""
        steps = self._steps()
        self._damaged, problems = [], []
        for step in reversed(steps):
            faults = manifest.verify(self.directory / str(step))
            if not faults:
                return step, problems
            self._damaged.append(step)
            problem = f"checkpoint {self.directory / str(step)} is damaged: {faults[0]}"
            if len(faults) > 1:
                problem += f", and {len(faults) - 1} more"
            warn(problem)
            problems.append(problem)
        return (_ALL_DAMAGED if steps else _NONE), problems

    def _make_way(self, step: int) -> None:
        """Clear what killed processes left behind, and damaged steps being redone."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in list(self.directory.iterdir()):
            if _LEFTOVER.fullmatch(path.name):
                _remove(path)
        while self._damaged:
            path = self.directory / str(self._damaged[-1])
            warn(f"checkpoint {path} is deleted: it is damaged and training redoes it")
            _discard(path)
            self._damaged.pop()
        path = self.directory / str(step)
        if os.path.lexists(path):
            raise InputError(
                f"checkpoint {path} exists already and is not of this run; "
                "choose another output_dir"
            )

    def _seal(self, step: int, keep: int | None) -> None:
        """Finish a save: wait for Orbax, seal, give it its name, delete old steps."""
        unsealed = self._unsealed(step)
        with self._reporting(step):
            self._orbax.wait_until_finished()
            if _is_primary():
                manifest.seal(unsealed)
                replacing.rename(unsealed, self.directory / str(step))
            self._newest = step
            if _is_primary() and self._limit is not None:
                for old in self._steps()[: -self._limit]:
                    if old != keep:
                        _discard(self.directory / str(old))

    @contextmanager
    def _reporting(self, step: int) -> Iterator[None]:
        """Say in the user's terms why a step could not be stored."""
        try:
            yield
        except TimeoutError:
            raise  # of another process, which has ended: nothing is wrong with the disk
        except (OSError, ValueError) as error:
            reason = _storage_reason(error)
            if reason is None:
                raise
            good = self._newest
            raise CheckpointError(
                f"{self.directory}: the checkpoint of step {step} could not be "
                f"written: {reason}; "
                + (f"step {good} is intact; " if good is not None else "")
                + "make room or permit writing there, then repeat the command"
            ) from error

    def _compare_fingerprint(self, folder: Path, stored: dict[str, str]) -> None:
        names = {**self._fingerprint, **stored}
        changed = [
            n + differences(stored.get(n), self._fingerprint.get(n))
            for n in names
            if stored.get(n) != self._fingerprint.get(n)
        ]
        if changed:
            raise InputError(
                f"{' and '.join(changed)} changed since checkpoint {folder} was "
                "written; choose a new output_dir, or continue all the same with "
                "`--resume anyway`"
            )

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def _unsealed(self, step: int) -> Path:
        return self.directory / f"{step}.unsealed"


def _storage_reason(error: OSError | ValueError) -> str | None:
    """What the operating system said; None if the fault is not the storage's."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # TensorStore raises ValueError and puts the number at the end of its message.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code.group(1))) if code else None


def _discard(path: Path) -> None:
    """Delete a step; it loses its name first, so a kill leaves no half of it behind."""
    doomed = path.with_name(path.name + ".deleting")
    path.rename(doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_primary() -> bool:
    return jax.process_index() == 0

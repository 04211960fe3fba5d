"""Several processes that train together: how they meet, agree and end.

The runtime is JAX's own (`jax.distributed`). What is added here: a failure of one
process ends all of them soon, with its reason.
"""

import contextlib
import importlib.util
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxpeft import console
from jaxpeft.devices import termination
from jaxpeft.devices.launch import Rank
from jaxpeft.errors import EXIT_INPUT, InputError

# Seconds that a process which fails waits for the others to say what they have to say.
LAST_WORDS = 5.0
LAST = 0.2  # seconds by which process 0, which serves the others, outlives them
# Where JAX writes down for all processes that one of them was asked to stop.
NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# Whole accelerators of a TPU machine, whose own metadata knows the rest.
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")

_questions = itertools.count(1)  # of this process, see `preempted`


def join(
    found: Rank | None, *, initialization_timeout: int, heartbeat_timeout: int
) -> bool:
    """Makes this process one of its run's, if there are several.

    It is called before anything else of JAX. Where the others do not come, it ends the
    program with the exit code of an InputError.

    Args:
        found: where this process stands; None: nothing says that there are several.
        initialization_timeout: seconds to wait for the others.
        heartbeat_timeout: seconds after which a process that no longer answers counts
            as dead, which ends all others.

    Returns:
        Whether there are several processes.

    Raises:
        InputError: the address cannot be used.
    """
    if found is None and not _on_tpu():
        return False
    settings: dict[str, Any] = {
        # Its own deadline would abort the program with a stack trace of C++.
        "initialization_timeout": initialization_timeout + 60,
        "heartbeat_timeout_seconds": heartbeat_timeout,
    }
    if found is not None:
        settings |= {
            "coordinator_address": found.coordinator,
            "num_processes": found.count,
            "process_id": found.index,
            "cluster_detection_method": found.launcher or "deactivate",
        }
        if found.local_devices is not None:
            settings["local_device_ids"] = list(found.local_devices)
        elif found.launcher and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # All of them: by itself JAX takes one, by its number on the machine, also
            # where the launcher shows a task one only or a machine has a single task.
            settings["local_device_ids"] = []
    deadline = threading.Timer(
        initialization_timeout, _give_up, (found, initialization_timeout)
    )
    deadline.daemon = True
    deadline.start()
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        if found is None:
            return False  # a TPU machine on its own
        raise InputError(
            f"cluster: process {found.index} of {found.count} cannot use "
            f"{found.address}: {str(error).splitlines()[0]}; give an address and a "
            "free port with --coordinator"
        ) from None
    finally:
        deadline.cancel()
    if jax.process_count() > 1:
        console.speak_as(jax.process_index())
        termination.join(cast(termination.Peers, sys.modules[__name__]))
    return jax.process_count() > 1


def _give_up(found: Rank | None, seconds: int) -> None:
    """Ends the program: only so can a call of JAX be left that waits for others."""
    who = "this process"
    if found is not None:
        who = f"process {found.index} of {found.count} (at {found.address})"
    console.error(
        f"cluster: {who} has not met the others within {seconds} s; see that all are "
        "started, with the same coordinator and number of processes, and that their "
        "machines reach that address, or raise cluster.initialization_timeout"
    )
    os._exit(EXIT_INPUT)


def _on_tpu() -> bool:
    here = any(Path(device).exists() for device in TPU_DEVICES)
    return here and importlib.util.find_spec("libtpu") is not None


def has_joined() -> bool:
    """Whether `join` has made this process one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Whether this is the process that writes what only one may write."""
    return jax.process_index() == 0


def is_shared() -> bool:
    """Whether the run has several processes."""
    return jax.process_count() > 1


def process_count() -> int:
    """How many processes the run has."""
    return jax.process_count()


def require_same(values: Mapping[str, Any], remedy: str) -> None:
    """Checks that all processes hold the same values.

    Args:
        values: name -> what JSON can hold.
        remedy: what to do where they differ, for the message.

    Raises:
        InputError: in every process, where one differs from process 0; it names what
            differs and the process.
    """
    if not is_shared():
        return
    mine = json.dumps(dict(values), sort_keys=True).encode()
    size = int(np.max(multihost_utils.process_allgather(np.int32(len(mine)))))
    padded = np.frombuffer(mine.ljust(size), np.uint8)
    texts = np.asarray(multihost_utils.process_allgather(padded))
    held = [json.loads(row.tobytes()) for row in texts]
    problems = []
    for index, other in enumerate(held[1:], 1):
        names = sorted({*held[0], *other})
        apart = [n for n in names if held[0].get(n) != other.get(n)]
        problems += [
            f"{name}: process {index} has {_short(other.get(name))}, process 0 has "
            f"{_short(held[0].get(name))}; {remedy}"
            for name in apart
        ]
    if problems:
        raise InputError(*problems)


def all_say(yes: bool) -> bool:
    """Whether every process says yes; all ask in the same places.

    Args:
        yes: what this one says.
    """
    if not is_shared():
        return yes
    return bool(np.all(multihost_utils.process_allgather(np.int32(yes))))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def wait_for_all(name: str) -> None:
    """Returns once every process is here.

    Args:
        name: of the place in the program, the same in all processes.
    """
    if is_shared():
        multihost_utils.sync_global_devices(name)


def preempted() -> bool:
    """Whether all processes are to save now: one was asked to stop.

    All ask in the same places, equally often; JAX agrees on a question that all of them
    have yet to ask.
    """
    return multihost_utils.reached_preemption_sync_point(next(_questions))


def noticed() -> bool:
    """Whether any process was asked to stop; any thread may ask, at any time."""
    try:
        _client().key_value_try_get(NOTICE)
    except (jax.errors.JaxRuntimeError, AttributeError):  # no notice, or no client
        return False
    return True


def meet(seconds: float) -> None:
    """Returns in all processes at once, or after so many seconds, before they end.

    Args:
        seconds: to wait for the others.
    """
    with contextlib.suppress(jax.errors.JaxRuntimeError, AttributeError):
        _client().wait_at_barrier("jaxpeft-end", int(seconds * 1000))
    if is_primary():
        time.sleep(LAST)  # the others cannot do without it


def leave(code: int, failed: bool) -> None:
    """Ends this process's part in a run of several.

    An orderly end waits for the others. After a failure they may wait for this process
    somewhere for ever: unless they come to their own end within some seconds, it ends
    the program at once, which the others then notice.

    Args:
        code: the exit code for that.
        failed: whether this process ends by a failure.
    """
    if failed and not _others_end_too():
        console.flush()
        os._exit(code)
    jax.distributed.shutdown()


def _others_end_too() -> bool:
    try:
        _client().wait_at_barrier("jaxpeft-last-words", int(LAST_WORDS * 1000))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _client() -> Any:
    """The client of JAX's coordination service."""
    import orbax.checkpoint as ocp

    return ocp.multihost.get_jax_distributed_client()

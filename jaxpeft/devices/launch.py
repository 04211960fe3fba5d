"""Where one process stands among those of a run, by flags and by its launcher."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxpeft.errors import InputError

ADDRESS, COUNT, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    coordinator: host:port of process 0. count, index: of processes, and which one this
    is. local_devices: the accelerators of this machine that are its own; None: all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


def place(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Place | None:
    """Where this process stands, or None where it is alone.

    Looked for in this order: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, each standing in for an argument that is not given; a step of
    SLURM (`srun`); Open MPI (`mpirun`). What a launcher says fills in what is missing
    of the first two. Raises InputError where something is missing or no number.
    """
    launched = _of_slurm(environ) or _of_open_mpi(environ)
    address = coordinator or environ.get(ADDRESS)
    count = _number(environ, COUNT) if num_processes is None else num_processes
    index = _number(environ, INDEX) if process_id is None else process_id
    if (address, count, index) == (None, None, None):
        if launched is None or launched.count == 1:
            return None
        found = launched
    else:
        given = {"coordinator": address, "count": count, "index": index}
        base = launched or Place("", 0, -1)
        values = {k: getattr(base, k) if v is None else v for k, v in given.items()}
        found = Place(**values, local_devices=base.local_devices)
    _check(found)
    return found if found.count > 1 else None


def _of_slurm(environ: Mapping[str, str]) -> Place | None:
    """That of a task which `srun` started; a batch script itself is no task."""
    if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    index, local = (_number(environ, f"SLURM_{n}") for n in ("PROCID", "LOCALID"))
    job = _number(environ, "SLURM_JOB_ID") or 0
    # The first of "node7", "node7,node9", "node[7-12,20],other3".
    first = re.match(
        r"([^\[,]*)(?:\[([^\],-]*)[^\]]*\])?([^,]*)", environ["SLURM_STEP_NODELIST"]
    )
    assert first is not None and index is not None
    host = "".join(part or "" for part in first.groups())
    nodes = _number(environ, "SLURM_STEP_NUM_NODES") or 1
    shared = (count or 1) > nodes  # a task an accelerator, not a task a machine
    return Place(
        coordinator=f"{host}:{_port(job)}",
        count=count or 1,
        index=index,
        local_devices=(local or 0,) if shared and _sees_others(environ) else None,
    )


def _of_open_mpi(environ: Mapping[str, str]) -> Place | None:
    count = _number(environ, "OMPI_COMM_WORLD_SIZE")
    index = _number(environ, "OMPI_COMM_WORLD_RANK")
    if count is None or index is None:
        return None
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    here = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    # Before version 5 the launcher's own address, "1531576320.0;tcp://10.96.0.1,...".
    launcher = re.match(
        r"(\d+)\..*?;tcp6?://\[?([^,\]:]+)", environ.get("OMPI_MCA_orte_hnp_uri", "")
    )
    if launcher:
        coordinator = f"{launcher[2]}:{_port(int(launcher[1]) >> 12)}"
    else:
        seed = environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_ess_base_jobid", ""))
        digits = re.sub(r"\D", "", seed)[-9:] or "0"
        coordinator = f"127.0.0.1:{_port(int(digits))}" if here == count else ""
    return Place(
        coordinator=coordinator,
        count=count,
        index=index,
        local_devices=(local,) if (here or 1) > 1 and _sees_others(environ) else None,
    )


def _port(job: int) -> int:
    """A port of the ephemeral range, the same in all processes of a job."""
    return 61440 + job % 4096


def _sees_others(environ: Mapping[str, str]) -> bool:
    """Whether a task sees more accelerators than its own, by what the launcher says."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return visible is None or len(visible.split(",")) > 1


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None or not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"{name}: found {text!r} in the environment; must be a number"
        ) from None


def _check(found: Place) -> None:
    problems = []
    address = re.fullmatch(r".+:(\d+)", found.coordinator)
    if address is None or not 0 < int(address[1]) < 2**16:
        problems.append(
            f"--coordinator: found {found.coordinator or 'nothing'}; give the host "
            f"and a free port of process 0, such as node1:61440 (or set {ADDRESS})"
        )
    if found.count < 1:
        problems.append(
            f"--num-processes: found {found.count or 'nothing'}; give how many "
            f"processes take part (or set {COUNT})"
        )
    elif not 0 <= found.index < found.count:
        what = "nothing" if found.index == -1 else found.index
        problems.append(
            f"--process-id: found {what}; give each of the {found.count} processes its "
            f"own, from 0 to {found.count - 1} (or set {INDEX})"
        )
    if problems:
        raise InputError(*problems)

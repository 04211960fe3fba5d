"""Where one process stands among those of a run, by flags and by its launcher.

The address at which processes meet is found by JAX's own detection wherever it knows
the launcher. Read here is what JAX leaves to its user: whether a process is alone, and
which accelerators are its own. JAX is not imported, since `--help` answers at once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxpeft.errors import InputError

ADDRESS, COUNT, INDEX = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
)


# Launchers of JAX's own cluster detection, by its names for them.
NAMES = {"slurm": "SLURM", "ompi": "Open MPI"}


@dataclass(frozen=True)
class Rank:
    """One process among those of a run.

    Attributes:
        coordinator: host:port of process 0; None: JAX has it from `launcher`.
        count: the number of processes.
        index: which of them this is, from 0.
        local_devices: the accelerators of this machine that are its own; None: all.
        launcher: one of NAMES whose address JAX detects; None: there is no such one.
    """

    coordinator: str | None
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    launcher: str | None = None

    @property
    def address(self) -> str:
        """The address of process 0, in words for a message."""
        if self.launcher:
            return f"the address that {NAMES[self.launcher]} gives"
        return str(self.coordinator)


def place(
    environ: Mapping[str, str],
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Rank | None:
    """Where this process stands among those of its run.

    Looked for in this order: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, each standing in for an argument that is not given; a step of
    SLURM (`srun`); Open MPI (`mpirun`). What a launcher says fills in what is missing
    of the first two.

    Args:
        environ: the environment's variables.
        coordinator: host:port of process 0.
        num_processes: how many take part.
        process_id: which of them this is, from 0.

    Returns:
        The process's rank; None where it is alone.

    Raises:
        InputError: something is missing, out of range or no number.
    """
    launched = _of_slurm(environ) or _of_open_mpi(environ)
    address = coordinator or environ.get(ADDRESS)
    count = _number(environ, COUNT) if num_processes is None else num_processes
    index = _number(environ, INDEX) if process_id is None else process_id
    if (address, count, index) == (None, None, None):
        if launched is None or launched.count == 1:
            return None
        rank = launched
    else:
        given = {"coordinator": address, "count": count, "index": index}
        base = launched or Rank(None, 0, -1)
        rank = replace(base, **{k: v for k, v in given.items() if v is not None})
        if address is not None:
            rank = replace(rank, launcher=None)
    _check(rank)
    return rank if rank.count > 1 else None


def _of_slurm(environ: Mapping[str, str]) -> Rank | None:
    """The rank of a task that `srun` started; a batch script itself is no task."""
    count = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS")
    index, local = (_number(environ, f"SLURM_{n}") for n in ("PROCID", "LOCALID"))
    if "SLURM_STEP_NODELIST" not in environ or index is None:
        return None
    nodes = _number(environ, "SLURM_STEP_NUM_NODES") or 1
    shared = (count or 1) > nodes  # a task an accelerator, not a task a machine
    own = (local or 0,) if shared and _sees_others(environ) else None
    return Rank(None, count or 1, index, own, "slurm")


def _of_open_mpi(environ: Mapping[str, str]) -> Rank | None:
    count = _number(environ, "OMPI_COMM_WORLD_SIZE")
    index = _number(environ, "OMPI_COMM_WORLD_RANK")
    if count is None or index is None:
        return None
    local = _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK") or 0
    here = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    own = (local,) if (here or 1) > 1 and _sees_others(environ) else None
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return Rank(None, count, index, own, "ompi")
    # From its version 5 on, of which JAX knows nothing: the job's number says a port of
    # the ephemeral range, the same in all processes, and nobody the first machine.
    job = environ.get("PMIX_NAMESPACE", environ.get("OMPI_MCA_ess_base_jobid", ""))
    port = 61440 + int(re.sub(r"\D", "", job)[-9:] or "0") % 4096
    return Rank(f"127.0.0.1:{port}" if here == count else None, count, index, own)


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


def _check(found: Rank) -> None:
    problems = []
    address = re.fullmatch(r".+:(\d+)", found.coordinator or "")
    if not found.launcher and (address is None or not 0 < int(address[1]) < 2**16):
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

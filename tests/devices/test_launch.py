"""Where a process finds itself, by flags and by what launchers leave behind."""

import os
import socket
import subprocess
import sys

import pytest

from jaxpeft.devices.launch import Rank, place
from jaxpeft.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[007-009,12]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "9",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_alone_where_nothing_says_otherwise():
    assert place({}) is None
    assert (
        place({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}) is None
    )
    assert place({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


def test_arguments_come_before_the_environment():
    environ = {
        "JAX_COORDINATOR_ADDRESS": "a:1",
        "JAX_NUM_PROCESSES": "3",
        "JAX_PROCESS_ID": "2",
    }
    assert place(environ) == Rank("a:1", 3, 2)
    assert place(environ, "b:2", 2, 0) == Rank("b:2", 2, 0)
    assert place({**SLURM, **environ}) == Rank("a:1", 3, 2)
    # What is not said is the launcher's.
    assert place(SLURM, "b:2") == Rank("b:2", 4, 2)


def test_the_launcher_says_the_address_to_jax():
    assert place(SLURM) == Rank(None, 4, 2, launcher="slurm")
    assert "SLURM" in Rank(None, 4, 2, launcher="slurm").address
    assert place(SLURM, "b:2") == Rank("b:2", 4, 2)


# What a task runs: our reading first, then JAX's.
MEET = """
import os, sys
from jaxpeft.devices import launch
found = launch.place(os.environ)
assert "jax" not in sys.modules
from jaxpeft.devices import cluster
assert cluster.join(found, initialization_timeout=60, heartbeat_timeout=60)
import jax
print(jax.process_index(), jax.process_count())
jax.distributed.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["slurm", "ompi"])
def test_tasks_meet_where_jax_has_the_address_from_the_launcher(launcher):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    both = {"slurm": {**SLURM, "SLURM_STEP_NODELIST": "127.0.0.1,node9"}, "ompi": MPI}
    two = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    two |= {"OMPI_COMM_WORLD_SIZE": "2"}
    uri = {"OMPI_MCA_orte_hnp_uri": f"{70001 << 12}.0;tcp://127.0.0.1:34911"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", MEET],
            env={
                **os.environ,
                **both[launcher],
                **{k: v for k, v in two.items() if k in both[launcher]},
                **(uri if launcher == "ompi" else {}),
                "SLURM_PROCID" if launcher == "slurm" else "OMPI_COMM_WORLD_RANK": i,
                "JAX_COORDINATOR_PORT": port,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in "01"
    ]
    assert [task.communicate(timeout=120)[0] for task in tasks] == ["0 2\n", "1 2\n"]


def test_tasks_that_share_a_machine_take_one_accelerator_each():
    eight = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7", "SLURM_LOCALID": "3"}
    environ = {**SLURM, **eight, "SLURM_STEP_NUM_NODES": "2"}
    found = place({**environ, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert found is not None and found.local_devices == (3,)
    # The launcher has given it its own already.
    found = place({**environ, "CUDA_VISIBLE_DEVICES": "0"})
    assert found is not None and found.local_devices is None


def test_open_mpi_before_and_after_its_version_5():
    uri = f"{70001 << 12}.0;tcp://10.96.0.1,10.148.0.1:34911"
    found = place({**MPI, "OMPI_MCA_orte_hnp_uri": uri})
    assert found == Rank(None, 4, 3, (1,), "ompi")
    here = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prte-70001@1"}
    found, other = place(here), place({**here, "OMPI_COMM_WORLD_RANK": "0"})
    assert found is not None and other is not None
    assert found.coordinator == other.coordinator
    assert found.coordinator.startswith("127.0.0.1:")
    with pytest.raises(InputError, match="--coordinator: found nothing"):
        place(MPI)  # several machines, and nobody says which is the first
    assert place(MPI, "head:5") == Rank("head:5", 4, 3, (1,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((None, 2, 0), "--coordinator: found nothing"),
        (("host:99999", 2, 0), "--coordinator: found host:99999"),
        (("host", 2, 0), "--coordinator: found host"),
        (("host:1", None, 0), "--num-processes: found nothing"),
        (("host:1", 2, None), "--process-id: found nothing.*from 0 to 1"),
        (("host:1", 2, 2), "--process-id: found 2"),
        (("host:1", 0, 0), "--num-processes: found"),
    ],
)
def test_what_is_missing_or_wrong_is_named(settings, message):
    with pytest.raises(InputError, match=message):
        place({}, *settings)


def test_numbers_that_are_none():
    with pytest.raises(InputError, match="JAX_PROCESS_ID: found 'one'"):
        place({"JAX_PROCESS_ID": "one"})

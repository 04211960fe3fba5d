"""Where a process finds itself, by flags and by what launchers leave behind."""

import pytest

from jaxpeft.devices.launch import Place, place
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
PORT = 61440 + 70001 % 4096


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
    assert place(environ) == Place("a:1", 3, 2)
    assert place(environ, "b:2", 2, 0) == Place("b:2", 2, 0)
    assert place({**SLURM, **environ}) == Place("a:1", 3, 2)
    # What is not said is the launcher's.
    assert place(SLURM, "b:2") == Place("b:2", 4, 2)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-009,12]", "gpu007"),
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("a[1,3],b2", "a1"),
        ("rack3-n[10-12]-ib", "rack3-n10-ib"),
    ],
)
def test_slurm_s_first_node_coordinates(nodes, first):
    found = place({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found == Place(f"{first}:{PORT}", 4, 2)


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
    assert found == Place(f"10.96.0.1:{PORT}", 4, 3, (1,))
    here = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prte-70001@1"}
    found, other = place(here), place({**here, "OMPI_COMM_WORLD_RANK": "0"})
    assert found is not None and other is not None
    assert found.coordinator == other.coordinator
    assert found.coordinator.startswith("127.0.0.1:")
    with pytest.raises(InputError, match="--coordinator: found nothing"):
        place(MPI)  # several machines, and nobody says which is the first
    assert place(MPI, "head:5") == Place("head:5", 4, 3, (1,))


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

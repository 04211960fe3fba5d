"""The scripts that start jobs say what the package listens to."""

import subprocess
from pathlib import Path

import pytest
import yaml

from jaxpeft import errors
from jaxpeft.devices import launch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("name", [p.name for p in SCRIPTS.glob("*.s*") if p.is_file()])
def test_shell_scripts_parse(name):
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)


def test_the_launch_script_wants_a_number():
    command = ["bash", SCRIPTS / "launch_local.sh", "--config", "some.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_job_sets_tell_processes_apart_and_queue_again_on_preemption():
    text = (SCRIPTS / "gke_jobset.yaml").read_text()
    sets = {one["metadata"]["name"]: one for one in yaml.safe_load_all(text)}
    for name, one in sets.items():
        [job] = one["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]
        ignored, failing = spec["podFailurePolicy"]["rules"]
        assert ignored["action"] == "Ignore" and failing["action"] == "FailJob"
        assert ignored["onExitCodes"]["values"] == [errors.EXIT_PREEMPTED]
        ends = [errors.EXIT_INPUT, errors.EXIT_NUMERICS]
        assert failing["onExitCodes"]["values"] == ends
        [container] = spec["template"]["spec"]["containers"]
        assert container["name"] == ignored["onExitCodes"]["containerName"]
        assert spec["parallelism"] == spec["completions"]
        if name.endswith("gpu"):
            values = {e["name"]: e.get("value", "0") for e in container["env"]}
            found = launch.place(values)
            first = f"{name}-{job['name']}-0-0.{name}:"
            assert found is not None and found.coordinator.startswith(first)
            assert found.count == spec["parallelism"]

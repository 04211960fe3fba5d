"""The scripts that start jobs say what the package listens to."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxpeft import errors
from jaxpeft.devices import launch

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"


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


def listed(python):
    """The versions of constraints/ for a Python, by name."""
    text = (ROOT / f"constraints/python{python}.txt").read_text()
    lines = [line.split(";")[0] for line in text.splitlines() if line[:1] != "#"]
    return dict(line.strip().split("==") for line in lines)


@pytest.mark.parametrize(("python", "jax"), [("3.11", "0.10."), ("3.12", "0.11.")])
def test_the_listed_versions_are_those_that_the_project_file_allows(python, jax):
    """After a change of pyproject.toml: bash scripts/lock.sh --keep."""
    versions = listed(python)
    assert versions["jax"].startswith(jax)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [project["dependencies"]]
    wanted += [extras[name] for name in extras if name not in ("cuda", "tpu")]
    for requirement in map(Requirement, (line for group in wanted for line in group)):
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert requirement.specifier.contains(versions[name], prereleases=True)
    # A build of torch for CPUs wants none of these, and other builds say which.
    theirs = {name for name in versions if name.startswith(("nvidia", "triton"))}
    assert theirs == {"nvidia-cuda-nvcc"}


def test_hooks_format_as_the_tests_do():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    ruff = set(re.findall(r"ruff==([\d.]+)", text))
    assert ruff == {listed("3.11")["ruff"]} == {listed("3.12")["ruff"]}


@pytest.mark.slow
def test_the_trials_of_endurance_know_the_code_that_they_try():
    """Places that SIGTERM is sent at exist, and all forty kinds of input have a row."""
    code = """
import importlib, operator, sys
import sigterm
from endured import inputs
for place in sigterm.PLACES.values():
    module, _, path = place.function.partition(":")
    assert callable(operator.attrgetter(path)(importlib.import_module(module)))
named = inputs.kinds([row.name for row in inputs.rows()])
print(sorted(set(range(1, 41)) - named))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{SCRIPTS}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    # Those three are trials of their own: of checkpoints, and of a run in use.
    assert done.stdout == "[38, 39, 40]\n", done.stderr

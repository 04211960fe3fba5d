"""Programs that are compiled in one place and used in another."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxpeft.devices import programs, shipped
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError

RUN = """
output_dir: run
model: {path: "jaxpeft:tiny-llama", dtype: float32}
adapter: {method: lora, r: 4, target_modules: all-linear}
data:
  train: {path: "jaxpeft:weather/train.json", format: alpaca}
  max_length: 64
  packing: true
optimizer: {name: sgd, learning_rate: 1.0e-2}
training: {max_steps: 2, batch_size: 2, save_steps: 2, samples: 0}
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A folder of programs; what `keep` did is undone."""
    monkeypatch.setenv(programs.SETTING, str(tmp_path / "kept"))
    names = ("dir", "max_size")
    settings = [f"jax_compilation_cache_{name}" for name in names]
    settings += [
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_enable_xla_caches",
    ]
    before = {name: jax.config.values[name] for name in settings}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    programs.keep()
    yield tmp_path / "kept"
    shipped._added.clear()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def step(number, lines):
    """A step that is compiled anew, as far as JAX's own memory goes."""
    jax.clear_caches()

    def function(total, batch):
        return total + number * batch["tokens"], jnp.sum(total)

    compiled = Compiled(function, "step", lines.append, carries=True)
    total, _ = compiled(jnp.zeros(3), {"tokens": jnp.ones(3)})
    np.testing.assert_array_equal(total, number)


def changed(path: Path, **fields) -> Path:
    """The same file with another manifest."""
    other = path.with_name("other.zip")
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(other, "w") as after:
        for name in before.namelist():
            data = before.read(name)
            if name == shipped.MANIFEST:
                data = json.dumps({**json.loads(data), **fields}).encode()
            after.writestr(name, data)
    return other


def test_what_was_saved_is_loaded_and_another_step_is_told_of(kept, tmp_path):
    path, lines = tmp_path / "step.zip", []
    with shipped.saving(path, jax.devices()):
        step(2, [])
    settings = dict(jax.config.values)
    assert not list(kept.rglob(f"*{programs.ENTRY}"))  # that has a folder of its own
    assert settings["jax_compilation_cache_dir"].startswith(str(kept))
    assert shipped.add(path, lines.append)
    step(2, lines)
    step(3, lines)
    step(4, lines)
    assert [line.split(" ")[0] for line in lines] == [
        *("programs", "loaded", "compiled", f"'{path}'", "compiled"),
    ]
    assert "has no program of this step" in lines[3]


@pytest.mark.parametrize(
    "fields",
    [
        {"jax": "0.1.0"},
        {"jaxlib": "0.1.0"},
        {"platform": "tpu", "kind": "TPU v5 lite"},
        {"count": 4096},
        {"form": 2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_file_for_something_else_is_a_warning(kept, tmp_path, capsys, fields):
    with shipped.saving(tmp_path / "step.zip", jax.devices()):
        step(2, [])
    lines = []
    assert not shipped.add(changed(tmp_path / "step.zip", **fields), lines.append)
    said = capsys.readouterr().err
    assert "cannot be used" in said and "compiles its own" in said
    assert all(repr(value) in said for value in fields.values())
    step(2, lines)
    assert [line.split(" ")[0] for line in lines] == ["compiled"]


def test_where_nothing_is_kept_it_is_a_warning(kept, tmp_path, capsys, monkeypatch):
    with shipped.saving(tmp_path / "step.zip", jax.devices()):
        step(2, [])
    monkeypatch.setattr(programs, "folder", lambda: None)
    assert not shipped.add(tmp_path / "step.zip", print)
    assert "no programs are kept" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"no archive", "a-cache", "manifest.json"])
def test_what_is_no_such_file_is_refused(kept, tmp_path, content):
    path = tmp_path / "file"
    if isinstance(content, str):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(content, b"3")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="--programs: .*file'"):
        shipped.add(path, print)


def test_names_that_are_no_programs_stay_outside(kept, tmp_path):
    path = tmp_path / "step.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(shipped.MANIFEST, json.dumps(shipped.about(jax.devices())))
        archive.writestr("../../out-cache", b"")
        archive.writestr("/tmp/out-cache", b"")
        archive.writestr("notes.txt", b"")
    lines = []
    assert shipped.add(path, lines.append)
    assert "0 added" in lines[0]
    assert not list(tmp_path.rglob("out-cache"))


@pytest.mark.slow
def test_a_run_takes_its_first_step_by_the_program_of_a_plan(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)

    def command(name, kept, *more):
        done = subprocess.run(
            [sys.executable, "-m", f"jaxpeft.{name}", "--config", "run.yaml", *more],
            cwd=tmp_path,
            env={**os.environ, "JAXPEFT_CACHE_DIR": str(tmp_path / kept)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    command("plan", "there", "--save", "step.zip")
    said = command("train", "here", "--programs", "step.zip")
    assert "loaded the step for batches of 1 x 2 x 64, compiled before" in said
    assert "has no program of this step" not in said

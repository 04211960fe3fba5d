"""Compiled programs that outlive their process, and the faults that must not matter."""

import errno
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxpeft.devices import programs
from jaxpeft.devices.compiled import Compiled

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)
NUMBERS = tuple(range(2, 8))
# Of another process: it compiles what `compute` does here.
COMMAND = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_programs as here
here.programs.SECONDS = 0
here.programs.keep()
for number in {NUMBERS}:
    here.compute(number)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder named by the setting; what `keep` did is undone."""
    monkeypatch.setenv(programs.SETTING, str(tmp_path / "kept"))
    monkeypatch.setattr(programs, "SECONDS", 0)
    before = {name: jax.config.values[name] for name in SETTINGS}
    defaults = (None, -1, 1.0, "xla_gpu_per_fusion_autotune_cache_dir")
    for name, value in zip(SETTINGS, defaults, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
        yield tmp_path / "kept"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute(number: float) -> bool:
    """Whether the program came from the cache; each number has its own."""
    jax.clear_caches()

    def step(x):
        return jnp.sort(x * number).cumsum()

    with programs.watch() as taken:
        found = jax.jit(step)(np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(found, np.cumsum(np.arange(4) * number))
    return taken()


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{programs.ENTRY}"))


def test_a_program_is_compiled_once(cache):
    programs.keep()
    assert not compute(2)
    assert compute(2)
    assert not compute(3)
    [folder] = (cache / "programs").iterdir()
    assert jax.config.values["jax_compilation_cache_dir"] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # nobody else's programs are run
    assert len(entries(cache)) == 2


def test_a_state_that_is_carried_is_given_up_for_the_next_by_a_program_loaded(cache):
    programs.keep()
    lines = []

    def function(total, batch):
        return total + batch["tokens"], jnp.sum(total)

    for _ in range(2):
        jax.clear_caches()
        compiled = Compiled(function, "sum", lines.append, carries=True)
        total, batch = jnp.zeros(3), {"tokens": jnp.ones(3)}
        new, before = compiled(total, batch)
        np.testing.assert_array_equal(new, 1.0)
        assert before == 0 and total.is_deleted()
        assert not batch["tokens"].is_deleted()
    assert [line.split(" in ")[0] for line in lines] == [
        "compiled the sum for batches of 3",
        "loaded the sum for batches of 3, compiled before,",
    ]
    amounts = [line.split("(")[1] for line in lines]
    assert amounts[0] == amounts[1]  # what a plan of memory goes by


def test_where_it_is_by_default(cache, monkeypatch, tmp_path):
    monkeypatch.delenv(programs.SETTING)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    programs.keep()
    found = Path(jax.config.values["jax_compilation_cache_dir"])
    assert found.parent == tmp_path / "xdg" / "jaxpeft" / "programs"


@pytest.mark.parametrize("xdg", [None, "", "somewhere"])
def test_without_a_cache_folder_it_is_in_the_home(cache, monkeypatch, tmp_path, xdg):
    monkeypatch.delenv(programs.SETTING)
    monkeypatch.setenv("HOME", str(tmp_path))
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    programs.keep()
    found = Path(jax.config.values["jax_compilation_cache_dir"])
    assert found.parent == tmp_path / ".cache" / "jaxpeft" / "programs"


def test_it_can_be_off(cache, monkeypatch):
    monkeypatch.setenv(programs.SETTING, "off")
    programs.keep()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert not compute(2) and not compute(2) and not cache.exists()


def test_a_cache_of_the_user_stays(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    before = {name: jax.config.values[name] for name in SETTINGS}
    programs.keep()
    assert {name: jax.config.values[name] for name in SETTINGS} == before
    assert not cache.exists()


def test_bounds_of_the_user_stay(cache):
    jax.config.update("jax_compilation_cache_max_size", 12345)
    programs.keep()
    assert jax.config.values["jax_compilation_cache_max_size"] == 12345


def a_file_in_its_place(cache: Path, monkeypatch) -> None:
    cache.write_text("no folder")


def read_only(cache: Path, monkeypatch) -> None:
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(cache))

    monkeypatch.setattr(programs.tempfile, "TemporaryFile", refuse)


def no_locks(cache: Path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(programs.filelock.FileLock, "acquire", refuse)


def no_home(cache: Path, monkeypatch) -> None:
    def refuse():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(programs.SETTING)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", refuse)


@pytest.mark.parametrize(
    "fault",
    [a_file_in_its_place, read_only, no_locks, no_home],
    ids=lambda f: f.__name__,
)
def test_a_folder_that_cannot_be_used_is_a_warning(cache, monkeypatch, capsys, fault):
    fault(cache, monkeypatch)
    programs.keep()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert not compute(2)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: compiled programs are not kept: ")
    assert "set JAXPEFT_CACHE_DIR to a folder" in line


@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks_will_do(cache, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    programs.keep()
    assert not compute(2) and compute(2)
    assert capsys.readouterr().err == ""


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(bytes(reversed(path.read_bytes())))


@pytest.mark.parametrize("damage", [cut, empty, overwrite], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("error")
def test_damaged_programs_are_one_warning_and_made_anew(cache, capsys, damage):
    programs.keep()
    compute(2), compute(3)
    sound = {path: path.read_bytes() for path in entries(cache)}
    for path in sound:
        damage(path)
    assert not compute(2) and not compute(3)
    [line] = capsys.readouterr().err.splitlines()
    assert "reading a compiled program (jit_step) failed: " in line
    assert set(entries(cache)) == set(sound)
    assert compute(2) and compute(3)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_warning(cache, capsys):
    programs.keep()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # like a quota
    try:
        assert not compute(2) and not compute(3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    [line] = capsys.readouterr().err.splitlines()
    assert "writing a compiled program (jit_step) failed: " in line
    assert os.strerror(errno.EFBIG) in line
    assert not entries(cache)  # no half of one is left


def test_other_warnings_are_as_ever(cache):
    programs.keep()
    with pytest.warns(UserWarning, match="of something else"):
        warnings.warn("of something else", stacklevel=1)


def test_the_folder_is_bounded(cache, monkeypatch):
    programs.keep()
    compute(2)
    [entry] = entries(cache)
    monkeypatch.setattr(programs, "SIZE", int(2.5 * entry.stat().st_size))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_compilation_cache_max_size", -1)
    compilation_cache.reset_cache()
    programs.keep()
    for number in (3, 2, 4):
        compute(number)
    assert len(entries(cache)) == 2
    assert compute(2) and compute(4) and not compute(3)  # the oldest use went


def test_what_a_kill_left_does_not_stop_the_eviction(cache, monkeypatch):
    programs.keep()
    compute(2)
    for path in cache.rglob(f"*{programs.LAST_USE}"):
        path.unlink()  # killed between the two writes
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    programs.keep()
    assert not compute(3)
    assert len(entries(cache)) == 2 and compute(2)


def test_folders_of_other_processors_go_when_nobody_needs_them(cache):
    old, new = (cache / "programs" / name for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "x-cache").touch()
    os.utime(old, (0, 0))
    programs.keep()
    assert new.exists() and not old.exists()


def test_processors_that_differ_have_folders_of_their_own(monkeypatch):
    text = "processor : 0\nflags : fpu {}\ncpu MHz : {}\n\nprocessor : 1\n"
    names = []
    for told in (("avx", "1"), ("avx", "2"), ("avx avx512f", "1")):
        monkeypatch.setattr(Path, "read_text", lambda _, t=told: text.format(*t))
        names.append(programs._processor())
    assert names[0] == names[1] != names[2]


def in_a_process(code: str) -> subprocess.Popen:
    environment = {n: v for n, v in os.environ.items() if "_CACHE_" not in n}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        programs.SETTING: os.environ[programs.SETTING],
    }
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_processes_share_it_at_once(cache):
    running = [in_a_process(COMMAND) for _ in range(2)]
    for process in running:
        assert process.communicate(timeout=200) == ("", "")
    programs.keep()
    assert all(compute(number) for number in NUMBERS)


@pytest.mark.slow
def test_importing_the_library_leaves_jax_and_python_as_they_are():
    code = """
import importlib, pkgutil, warnings, jax
before, show = dict(jax.config.values), warnings.showwarning
import jaxpeft
for found in pkgutil.walk_packages(jaxpeft.__path__, "jaxpeft."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
after = dict(jax.config.values)
print({n: after[n] for n in after if n not in before or after[n] != before[n]})
print(warnings.showwarning is show)
"""
    process = in_a_process(code)
    out, err = process.communicate(timeout=200)
    assert out.split() == ["{}", "True"], err

"""Compiled programs in one file, to be used where they were not compiled.

The file is an archive of what JAX's cache of programs wrote while one was compiled, and
of what that was for. Where it is added, JAX finds a program by its own key: its text,
the versions and flags, the devices. So one that is of another step, or for others, is
passed over, and the command compiles as it would without.
"""

import contextlib
import io
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxpeft import caches, console
from jaxpeft.devices import programs
from jaxpeft.errors import InputError

FORM, MANIFEST = 1, "manifest.json"
NAME = re.compile(r"[\w.-]+" + programs.ENTRY)
# What of a manifest has to be as it is here, and how it is called.
SAME = {
    "jax": "JAX",
    "jaxlib": "jaxlib",
    "platform": "the platform",
    "kind": "the device",
    "count": "the number of devices",
}

_added: list[Path] = []  # by this process, of which no step was asked for yet


def about(devices: Sequence[Any]) -> dict[str, Any]:
    """What a program for these devices is told by.

    Args:
        devices: all that it is for, here or not.
    """
    return {
        "form": FORM,
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
    }


@contextlib.contextmanager
def saving(path: Path, devices: Sequence[Any]) -> Iterator[None]:
    """Writes what is compiled inside its `with` block into a file.

    For commands: it changes settings of JAX meanwhile, and JAX forgets its programs.

    Args:
        path: of the file, which is replaced.
        devices: see `about`.

    Raises:
        InputError: the file cannot be written, or the compiler of these devices gives
            nothing that can be kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "jax_compilation_cache_dir": folder,
            "jax_enable_compilation_cache": True,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_compilation_cache_max_size": -1,
            # As `programs.keep` has it: it would be in the key of each program.
            "jax_persistent_cache_enable_xla_caches": "none",
        }
        before = {name: jax.config.values[name] for name in settings}
        _set(settings)
        try:
            yield
        finally:
            _set(before)
        entries = sorted(p for p in Path(folder).iterdir() if NAME.fullmatch(p.name))
        if not entries:
            raise InputError(
                f"--save: the compiler of {devices[0].device_kind!r} gives no program "
                "that can be kept"
            )
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:  # they are compressed already
            archive.writestr(MANIFEST, json.dumps(about(devices), indent=1))
            for entry in entries:
                archive.write(entry, entry.name)
        try:
            _write(path, packed.getvalue())
        except OSError as error:
            raise InputError(
                f"--save: {str(path)!r} cannot be written: {error.strerror}"
            ) from None


def _set(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it reads them once


def add(path: Path, note: Callable[[str], None]) -> bool:
    """Puts the programs of a file beside those that this user's commands keep.

    After `programs.keep`. Where they cannot be used here, that is a warning.

    Args:
        path: of a file that `saving` wrote. It is code: whoever wrote it can have this
            process do anything.
        note: is told what was added.

    Returns:
        Whether there is anything of it that this process may use.

    Raises:
        InputError: it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = dict(json.loads(archive.read(MANIFEST)))
            names = [name for name in archive.namelist() if NAME.fullmatch(name)]
            entries = {name: archive.read(name) for name in names}
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "it is no file of plan --save"
        raise InputError(f"--programs: {str(path)!r}: {reason}") from None
    here = about(jax.devices())
    others = [
        f"{what} is {manifest.get(name)!r} there and {here[name]!r} here"
        for name, what in SAME.items()
        if manifest.get(name) != here[name]
    ]
    folder = programs.folder()
    if manifest.get("form") != FORM:
        others = [f"its form is {manifest.get('form')!r}, and {FORM} is known here"]
    elif folder is None:
        others.append(f"no programs are kept ({caches.SETTING} is {caches.OFF!r})")
    if others or folder is None:
        console.warn(
            f"--programs: {str(path)!r} cannot be used: {'; '.join(others)}; the "
            "command compiles its own programs"
        )
        return False
    with filelock.FileLock(folder / programs.LOCK, timeout=programs.PATIENCE):
        for name, data in entries.items():
            _write(folder / name, data)
            use = name.removesuffix(programs.ENTRY) + programs.LAST_USE
            _write(folder / use, time.time_ns().to_bytes(8, "little"))  # as JAX does
    note(f"programs of {str(path)!r}: {len(entries)} added to those that are kept")
    _added.append(path)
    return True


def missed(note: Callable[[str], None]) -> None:
    """Says, once, that a step was compiled though its program was to come along.

    Args:
        note: is told.
    """
    for path in _added:
        note(
            f"{str(path)!r} has no program of this step: its configuration, its data's "
            "shapes, XLA_FLAGS or a library beneath JAX differ; it was compiled here"
        )
    _added.clear()


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)

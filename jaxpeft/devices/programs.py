"""Compiled programs kept from one start to the next, in the user's cache folder.

The cache is JAX's own, which knows programs by their text, the versions and flags they
were compiled with and the devices they are for. What is added here: a place of its own
for each kind of processor, a bound, and that no fault of the folder ends a command.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import filelock
import jax
from jax import monitoring

from jaxpeft import caches, console
from jaxpeft.caches import OFF, SETTING

SIZE = 2 * 2**30  # bytes in a folder, beyond which the least recently used ones go
SECONDS = 0.1  # what compiles faster is not worth a file
UNUSED = 90 * 24 * 3600  # seconds after which another processor's folder goes
PATIENCE = 10  # seconds to wait for the folder's lock, as JAX does

# What JAX's cache calls its files, and what it says of one that it cannot use.
ENTRY, LAST_USE, LOCK = "-cache", "-atime", ".lockfile"
FAULT = r"Error (reading|writing) persistent compilation cache entry for '(.*?)': (.*)"
# Faults of the folder, not of what lies in it.
ELSEWHERE = ("Timeout", "PermissionError", "NotImplementedError")
# The events of JAX: a program is wanted, and is taken from a cache.
WANTED = "/jax/compilation_cache/compile_requests_use_cache"
TAKEN = "/jax/compilation_cache/cache_hits"


def keep() -> None:
    """Makes this process keep its compiled programs, and use those kept before.

    For commands, as they start: it changes settings of JAX. Does nothing where the user
    has set a cache of JAX's own or turned that off. JAXPEFT_CACHE_DIR names another
    folder, or is "off". A folder that cannot be used is a warning.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    try:
        kept = folder()
        if kept is None:
            return
        _open(kept)
    except (OSError, RuntimeError, filelock.Timeout) as error:
        _warn_of_folder(error)
        return
    _tell_of_faults(kept)
    settings = {
        "jax_compilation_cache_max_size": (-1, SIZE),
        "jax_persistent_cache_min_compile_time_secs": (1.0, SECONDS),
        # Files of XLA's own beside them know no bound, and cannot fail quietly.
        "jax_persistent_cache_enable_xla_caches": (
            "xla_gpu_per_fusion_autotune_cache_dir",
            "none",
        ),
    }
    for name, (default, value) in settings.items():
        if jax.config.values[name] == default:  # else the user's own
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(kept))


def folder() -> Path | None:
    """Where programs are kept, a cache of JAX's own if it has one; None: nowhere."""
    if own := jax.config.values["jax_compilation_cache_dir"]:
        return Path(own)
    if not jax.config.values["jax_enable_compilation_cache"]:
        return None
    root = caches.root()
    return root and root / caches.PROGRAMS / _processor()


def beside(name: str) -> Path | None:
    """A folder for something else that is kept between commands; None: nothing is.

    It goes with those of other processors where nothing was written there for long.

    Args:
        name: of the folder.
    """
    root = caches.root()
    return root and root / caches.PROGRAMS / name


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
    """Tells, inside its `with` block, whether programs come from a cache.

    Yields:
        A function that says whether the newest program came from a cache.
    """
    newest = ""

    def note(event: str, **_: Any) -> None:
        nonlocal newest
        if event in (WANTED, TAKEN):
            newest = event

    monitoring.register_event_listener(note)
    try:
        yield lambda: newest == TAKEN
    finally:
        monitoring.unregister_event_listener(note)


def _processor() -> str:
    """A name for processors of one kind: another may not run what is compiled here."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        first = f"{platform.processor()}\n{platform.mac_ver()[0]}"
    told = re.findall(
        r"^(?:vendor_id|cpu family|model|flags|Features|CPU .*?)\s*:.*$", first, re.M
    )
    # Programs are cut for so many threads.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    text = "\n".join([*(told or [first]), str(threads or os.cpu_count())])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _open(folder: Path) -> None:
    """Makes the folder, sees that it can be used, and mends what a kill left behind.

    Raises OSError, RuntimeError or filelock.Timeout where it cannot be used.
    """
    # For its owner alone: who can write there can have commands run anything.
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(4096))
    # Where a shared file system knows no locks of the kernel, files take their place.
    warnings.filterwarnings("ignore", message="flock not supported")
    with filelock.FileLock(folder / LOCK, timeout=PATIENCE):
        os.utime(folder)
        for entry in folder.glob(f"*{ENTRY}"):
            # JAX evicts nothing, nor writes anything, where one of these is missing.
            use = entry.with_name(entry.name.removesuffix(ENTRY) + LAST_USE)
            if not use.exists():
                use.write_bytes(bytes(8))
    for other in folder.parent.iterdir():
        with contextlib.suppress(OSError):
            if other != folder and other.stat().st_mtime < time.time() - UNUSED:
                shutil.rmtree(other)


def _warn_of_folder(error: Exception) -> None:
    reason = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f": {str(error.filename)!r}"
        reason = error.strerror + where
    console.warn(
        f"compiled programs are not kept: {reason}; set {SETTING} to a folder that can "
        f"be written, or to {OFF}"
    )


def _tell_of_faults(folder: Path) -> None:
    """Says the first of JAX's complaints of the folder in the commands' own words.

    A damaged program is removed, so that it is compiled and kept anew. They are never
    errors, even where Python is told that warnings are.
    """
    warnings.filterwarnings("always", message=FAULT, category=UserWarning)
    others, told = warnings.showwarning, False

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        nonlocal told
        match = re.match(FAULT, str(message), re.S)
        if match is None:
            others(message, category, filename, lineno, file, line)
            return
        doing, name, reason = match.groups()
        if not reason.startswith(ELSEWHERE):
            _discard(folder, name)
        if not told:
            console.warn(
                f"{str(folder)!r}: {doing} a compiled program ({name}) failed: "
                f"{reason.splitlines()[0]}; the command goes on without it"
            )
        told = True

    warnings.showwarning = show


def _discard(folder: Path, name: str) -> None:
    """Removes the programs of this name, one of which is damaged."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{name}-*"):
            if path.name.endswith((ENTRY, LAST_USE)):
                path.unlink(missing_ok=True)

"""Where what is kept from one command to the next lies: compiled programs, examples."""

import contextlib
import os
import shutil
from pathlib import Path

SETTING, OFF = "JAXPEFT_CACHE_DIR", "off"
PROGRAMS = "programs"  # the folder of compiled programs and plans


def root() -> Path | None:
    """The folder of everything that is kept; None: JAXPEFT_CACHE_DIR is "off"."""
    chosen = os.environ.get(SETTING, "").strip()
    if chosen:
        return None if chosen == OFF else Path(chosen).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative one is to be ignored, says the specification of these folders.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "jaxpeft"


def size(folder: Path) -> int:
    """The bytes in a folder and those below it; 0 where it is absent.

    Args:
        folder: which may be changed meanwhile.
    """
    total = 0
    for file in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            total += 0 if file.is_dir() else file.stat().st_size
    return total


def clear(folder: Path) -> int:
    """Deletes a folder; how many bytes it had.

    Args:
        folder: in which nothing is needed.
    """
    freed = size(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return freed - size(folder)
